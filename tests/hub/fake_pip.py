#!/usr/bin/env -S python3 -IS
"""Stands in for `python3 -m pip download … -d FOLDER NAME==VERSION` in the hub's tests.

FAKE_PIP says what it does: "good", or one of the ways in which an index can be wrong. The wheel of package partN holds
partN/data.bin: 1000 bytes of N, as the test's catalogue expects; part4's is a zip of a
directory. Each call appends the package to $FAKE_PIP_LOG.
"""

import io
import os
import sys
import zipfile

arguments = sys.argv[1:]
mode = os.environ["FAKE_PIP"]
assert arguments[:3] == ["-m", "pip", "download"], arguments
assert "--no-deps" in arguments and arguments[arguments.index("--only-binary") + 1] == ":all:"
folder = arguments[arguments.index("-d") + 1]
package, version = arguments[-1].split("==")
with open(os.environ["FAKE_PIP_LOG"], "a", encoding="utf-8") as log:
    log.write(package + "\n")
if mode == "no pip":
    sys.exit("/usr/bin/python3: No module named pip")
if mode == "no package":
    print("WARNING: something else")
    sys.exit(f"ERROR: No matching distribution found for {package}=={version}")
if mode == "killed at part2" and package == "part2":
    sys.exit("Connection broken")

wheel = os.path.join(folder, f"{package}-{version}-py3-none-any.whl")
data = bytes([int(package[4:])]) * 1000
member = f"{package}/data.bin"
if package == "part4":  # a zip of a directory, stored, so that its bytes are the same everywhere
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as directory:
        for name, content in (("config.json", '{"a": 1}\n'), ("1_Pooling/config.json", "{}")):
            directory.writestr(zipfile.ZipInfo(name), content)
    data = inner.getvalue()
if mode == "wrong bytes":
    data = b"x" * 1000
elif mode == "too long":
    data += b"x"
elif mode == "other member":
    member = "../../" + member
if mode == "not a zip":
    with open(wheel, "wb") as file:
        file.write(b"<html>no such page</html>")
elif mode != "nothing":
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED if mode in ("bit flip", "lying size") else zipfile.ZIP_DEFLATED) as zip:
        zip.writestr("other.txt", "x" * 500)
        zip.writestr(member, data)
    if mode in ("bit flip", "cut off", "lying size"):
        with open(wheel, "rb") as file:
            content = bytearray(file.read())
        if mode == "bit flip":
            content[content.index(data) + 500] ^= 1
        elif mode == "lying size":  # the directory at the end promises 1000 bytes, of which the file stores 999
            at = content.rindex(b"PK\x01\x02")
            content[at + 20:at + 24] = (999).to_bytes(4, "little")
        else:
            del content[len(content) // 2:]
        with open(wheel, "wb") as file:
            file.write(content)
if mode == "two wheels":
    with open(os.path.join(folder, "other-1.0-py3-none-any.whl"), "wb") as file:
        file.write(b"")
