"""Another user, who looks for mounts of karapace and tries a set-user-id program in each: onlooker.py PROGRAM FILE.

Writes a line `seen DIRECTORY` for each mount that there is, and `reached DIRECTORY` for each in which the program can be run,
into FILE, until it is killed. `ready` is the first line.
"""

import os
import re
import sys


def mounts():
    """Where something is served through FUSE."""
    for line in open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape"):
        fields, kind = line.split(" - ", 1)
        if kind.startswith("fuse"):
            path = fields.split(" ")[4]
            yield re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), path)


def main():
    program, told = sys.argv[1], set()
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        print("ready", file=out, flush=True)
        while True:
            for directory in mounts():
                found = ["seen " + directory]
                if os.access(os.path.join(directory, program), os.X_OK):
                    found.append("reached " + directory)
                # `reached` first: whoever waits for `seen` has both.
                for line in sorted(set(found) - told):
                    told.add(line)
                    print(line, file=out, flush=True)


main()
