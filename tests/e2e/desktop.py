"""Starts what a .desktop file says, as a desktop does that goes by the specification: desktop.py FILE GROUP [HOST-FILE].

Field codes become the host file or nothing. With --print the arguments are printed, one a line, instead.
"""

import os
import re
import sys

ESCAPES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def values(path, wanted):
    """The keys of a group."""
    found, group = {}, None
    for line in open(path, encoding="utf-8").read().split("\n"):
        if line.startswith("["):
            group = line[1:-1]
        elif "=" in line and group == wanted:
            key, value = line.split("=", 1)
            assert key not in found, f"{key} is there twice"
            found[key] = re.sub(r"\\(.)", lambda m: ESCAPES[m.group(1)], value)
    return found


def arguments(line):
    """What an Exec line consists of: (text, whether it was quoted)."""
    token = re.compile(r' *(?:"((?:[^"\\`$]|\\["\\`$])*)"|([^\s"\'\\><~|&;$*?#()`]+))(?= |$)')
    at = 0
    while at < len(line.rstrip(" ")):
        match = token.match(line, at)
        assert match, f"not by the specification: {line[at:]!r}"
        at = match.end()
        if match.group(2) is None:
            yield re.sub(r"\\(.)", r"\1", match.group(1)), True
        else:
            yield match.group(2), False


def expanded(argument, quoted, file):
    """An argument with its field codes replaced."""
    if argument in ("%f", "%F", "%u", "%U"):
        return [file] if file else []
    if quoted:
        assert not re.search("%[^%]", argument.replace("%%", "")), f"a field code in quotes: {argument!r}"
    codes = {"%": "%", "f": file, "u": file, "c": "Name", "k": "", "i": ""}
    return [re.sub("%(.)", lambda m: codes[m.group(1)], argument)]


def main():
    args = sys.argv[1:]
    printing = args[0] == "--print"
    path, group, *files = args[1:] if printing else args
    line = values(path, group)["Exec"]
    argv = [word for text, quoted in arguments(line) for word in expanded(text, quoted, files[0] if files else "")]
    if printing:
        print("\n".join(argv))
    else:
        os.execvp(argv[0], argv)


main()
