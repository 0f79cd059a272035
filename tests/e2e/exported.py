"""exported.py TAR [SKIPPED]: prints a line for each entry of an exported tar: all that is kept of it but the times, and the time of the file
with the name DATED. Names that match SKIPPED, a regular expression, are left out."""

import hashlib
import re
import sys
import tarfile

DATED = "etc/hostname"
skipped = re.compile(rf"(\./)?({sys.argv[2]})" if len(sys.argv) > 2 else r"(?!)")
with tarfile.open(sys.argv[1]) as tar:
    for entry in tar:
        if skipped.match(entry.name):
            continue
        content = hashlib.sha256(tar.extractfile(entry).read()).hexdigest() if entry.isreg() else ""
        attributes = sorted((k, v) for k, v in entry.pax_headers.items() if k.startswith("SCHILY"))
        dated = entry.mtime if entry.name.endswith(DATED) else ""
        print(entry.name, entry.type, oct(entry.mode), entry.uid, entry.gid, entry.linkname, entry.size,
              (entry.devmajor, entry.devminor), content, attributes, dated)
