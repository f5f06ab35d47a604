"""Moorage itself inside a guest: the Python that runs the tests, as an archive behind an initramfs.

Which files that takes, Python says: a process imports what the guest will run, and lists its modules and libraries.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LIST = """
import importlib.metadata, importlib.util, os, pkgutil, sys
import agent.__main__, supervisor.__main__, supervisor.gvproxy.__main__, supervisor.gunicorn_settings, worker.zygote
import api, gunicorn.app.wsgiapp, gunicorn.glogging, gunicorn.workers.gthread
import gunicorn.__main__ as _  # which does nothing under another name
import dns.rdtypes
for module in pkgutil.walk_packages(dns.rdtypes.__path__, "dns.rdtypes."):
    importlib.import_module(module.name)  # which dnspython itself does as records come
import concurrent.futures.thread, encodings.idna  # likewise late
files = {file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
files |= {importlib.util.cache_from_source(file) for file in files if file.endswith(".py")}
with open("/proc/self/maps") as maps:
    files |= {line.split(None, 5)[5].strip() for line in maps if ".so" in line}
files.add(os.path.realpath(sys.executable))
files |= {str(file.locate()) for file in importlib.metadata.files("moorage") if file.name == "METADATA"}
print(*filter(os.path.exists, files), sep="\\n")
"""
LOADER = Path("/lib64/ld-linux-x86-64.so.2")


def append_python(initramfs: Path, image: Path) -> None:
    """Write `image`: the initramfs, then Python with every module of the service and the agent."""
    found = subprocess.run([sys.executable, "-P", "-c", LIST], check=True, capture_output=True, text=True).stdout
    files = {name for line in found.splitlines() for name in _names(Path(line))}
    folders = {folder for file in files for folder in file.parents}
    listing = "\n".join(sorted(str(path.relative_to("/")) for path in (files | folders) - {Path("/")}))
    with image.open("wb") as archive:
        archive.write(initramfs.read_bytes())
        archive.write(bytes(-archive.tell() % 4))  # the kernel looks for the next archive at a multiple of 4
        archive.flush()
        command = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(command, cwd="/", input=listing.encode(), stdout=archive, check=True)


def link_loader() -> str:
    """What must be run once in the guest: /lib64, where programs look for their loader, is a link on the host."""
    return f"mkdir -p {LOADER.parent} && ln -sf {LOADER.resolve()} {LOADER}"


def python_command() -> str:
    """What starts that Python in the guest's shell; modules and arguments follow."""
    path = ":".join(folder for folder in sys.path if folder and not folder.startswith(sys.base_prefix))
    return f"PYTHONHOME={sys.base_prefix} PYTHONPATH={path} {os.path.realpath(sys.executable)} -P"


def _names(file: Path) -> set[Path]:
    """A file and, of a system's library, the symbolic links to it: programs ask for those."""
    if ".so" not in file.name or file.is_relative_to(sys.base_prefix):
        return {file}
    return {file, *(name for name in file.parent.iterdir() if name.is_symlink() and name.resolve() == file)}
