"""The metadata is in setup.cfg; here is what makes two builds the same."""

import contextlib
import gzip
import os
import shutil
import tarfile
import time

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# The modes of the files that a build writes go into the wheel.
os.umask(0o022)


class CleanBuild(build_py):
    """Packs nothing that an earlier build left."""

    def run(self):
        if not getattr(self, 'editable_mode', False):
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class ReproducibleSdist(sdist):
    """Archives neither who built it, nor when, nor with which umask."""

    def run(self):
        # What an earlier build listed there would be added.
        egg_info = self.get_finalized_command('egg_info').egg_info
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(egg_info, 'SOURCES.txt'))
        super().run()

    def make_archive(self, base_name, format, base_dir, **kwargs):
        path = base_name + '.tar.gz'
        now = int(os.environ.get('SOURCE_DATE_EPOCH', time.time()))

        def normalize(info):
            info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
            info.mtime = now
            info.uid = info.gid = 0
            info.uname = info.gname = ''
            return info

        with gzip.GzipFile(path, 'wb', mtime=now) as file:
            with tarfile.open(fileobj=file, mode='w') as archive:
                archive.add(base_dir, filter=normalize)
        return path


setup(cmdclass={'build_py': CleanBuild, 'sdist': ReproducibleSdist})
