"""./qiao: builds once, says what it does, passes arguments on. cmake, ninja and dpkg-query are stand-ins here."""

import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Configures nothing; keeps what it was called with.
CMAKE = '#!/bin/sh\necho "cmake $*" >>"$CALLS"\n[ -z "$BREAK_CMAKE" ] || { echo "CMake Error: no such thing"; exit 1; }\n'
# "Builds" a program that prints its arguments, a line each.
NINJA = """#!/bin/bash
echo "ninja $*" >>"$CALLS"
echo "[1/2] Building one"
while [[ -n $WAIT_FOR && ! -e $WAIT_FOR ]]; do sleep 0.02; done
if [[ -n $BREAK_NINJA ]]; then printf 'FAILED: two.o\\ntwo.cc:7: error: oh no\\n'; exit 1; fi
mkdir -p "$2/bin"
printf '#!/bin/bash\\npwd\\nprintf "<%%s>\\\\n" "$@"\\nexit 7\\n' >"$2/bin/qiao"
chmod +x "$2/bin/qiao"
echo "[2/2] Linking"
"""
# Every package is there, or those in $MISSING are not.
DPKG = '#!/bin/bash\nfor p in "${@:4}"; do [[ " $MISSING " == *" $p "* ]] || printf "ii $p "; done\n'
REFUSING = '#!/bin/sh\necho "E: cannot fetch"\nexit 100\n'


class Launcher(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="qiao launcher ")
        self.addCleanup(folder.cleanup)
        self.base = pathlib.Path(folder.name)
        self.tree = self.base / "a tree"
        (self.tree / "src").mkdir(parents=True)
        (self.tree / "src" / "one.cc").write_text("\n")
        shutil.copytree(ROOT / "cmake", self.tree / "cmake")
        for name in ("qiao", "CMakeLists.txt", "CMakePresets.json"):
            shutil.copy(ROOT / name, self.tree / name)
        # Older than any build: a copy keeps the checkout's times, which may be now.
        for path in self.tree.rglob("*"):
            os.utime(path, (1, 1))
        tools = self.base / "tools"
        tools.mkdir()
        for name, text in {"cmake": CMAKE, "ninja": NINJA, "dpkg-query": DPKG, "apt-get": REFUSING,
                           "sudo": REFUSING}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self.calls = self.base / "calls"
        self.calls.touch()
        self.environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(self.calls)}

    def qiao(self, *arguments, command=None, cwd=None, **environment):
        run = subprocess.run([command or self.tree / "qiao", *arguments], capture_output=True, text=True,
                             stdin=subprocess.DEVNULL, cwd=cwd or self.base, timeout=300,
                             env={**self.environment, **environment})
        return run.returncode, run.stdout, run.stderr

    def age_the_build(self):
        """As if it had been long ago: newer than the sources as they were, older than whatever is touched now."""
        os.utime(self.tree / "build" / "stamp", (2, 2))

    def builds(self):
        return self.calls.read_text().count("ninja ")

    def test_builds_once_and_passes_everything_on(self):
        status, out, err = self.qiao("chat", "two words", "", "*", "--flag=x y")
        self.assertEqual(status, 7)
        self.assertEqual(out, f"{self.base}\n<chat>\n<two words>\n<>\n<*>\n<--flag=x y>\n")
        self.assertIn("qiao: building (first use, some minutes): 50%\n", err)
        self.assertIn(f"ninja -C {self.tree}/build qiao\n", self.calls.read_text())
        status, _, err = self.qiao("again")
        self.assertEqual((status, err, self.builds()), (7, "", 1))

    def test_builds_again_when_a_source_is_newer(self):
        def build_and_settle():
            self.qiao()
            for path in (self.tree / "src").rglob("*"):
                os.utime(path, (1, 1))
            os.utime(self.tree / "src", (1, 1))
            self.age_the_build()

        build_and_settle()
        (self.tree / "src" / "one.cc").touch()
        build_and_settle()
        self.assertEqual(self.builds(), 2)
        (self.tree / "src" / "two.cc").touch()
        build_and_settle()
        self.assertEqual(self.builds(), 3)
        (self.tree / "src" / "two.cc").unlink()
        build_and_settle()
        self.qiao()
        self.assertEqual(self.builds(), 4)

    def test_through_links_and_from_anywhere(self):
        link = self.base / "bin link"
        link.symlink_to(self.tree / "qiao")
        self.assertEqual(self.qiao("x", command=link)[1], f"{self.base}\n<x>\n")
        self.assertEqual(self.qiao("x", command="./qiao", cwd=self.tree)[1], f"{self.tree}\n<x>\n")
        self.assertEqual(self.qiao("qiao", "x", command="bash", cwd=self.tree)[1], f"{self.tree}\n<x>\n")
        self.assertEqual(self.builds(), 1)

    def test_two_first_runs_build_one_after_the_other(self):
        go_on, errors = self.base / "go on", [self.base / "errors 0", self.base / "errors 1"]
        runs = []
        for i, path in enumerate(errors):
            with path.open("w") as err:
                runs.append(subprocess.Popen([self.tree / "qiao", str(i)], stdout=subprocess.PIPE, stderr=err, text=True,
                                             stdin=subprocess.DEVNULL, env={**self.environment, "WAIT_FOR": str(go_on)}))
        # The first one's build goes on when the second one says that it waits.
        until = time.monotonic() + 60
        while not any("waiting for another build" in path.read_text() for path in errors) and time.monotonic() < until:
            time.sleep(0.01)
        go_on.touch()
        outs = [run.communicate(timeout=300)[0] for run in runs]
        self.assertEqual([run.returncode for run in runs], [7, 7])
        self.assertEqual([out.split("\n")[1] for out in outs], ["<0>", "<1>"])
        self.assertEqual(sum("waiting for another build" in path.read_text() for path in errors), 1)

    def test_a_failed_build_shows_why_and_is_tried_again(self):
        status, out, err = self.qiao("x", BREAK_NINJA="1")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("two.cc:7: error: oh no\n", err)
        self.assertIn("build.log", err)
        self.assertEqual(self.qiao("x")[0], 7)
        self.age_the_build()
        (self.tree / "src" / "one.cc").touch()
        status, out, err = self.qiao("x", BREAK_CMAKE="1")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("CMake Error: no such thing\n", err)

    def test_names_what_it_cannot_install(self):
        status, out, err = self.qiao("x", MISSING="libzip-dev libfmt-dev")
        self.assertEqual((status, out, self.builds()), (1, "", 0))
        self.assertRegex(err, r"sudo .*apt-get install libfmt-dev libzip-dev\n")

    def test_it_starts_at_once_when_nothing_changed(self):
        self.qiao()
        calls = self.calls.read_text()
        best = min(self.processor_seconds() for _ in range(10))
        self.assertLess(best, 0.25)  # some milliseconds
        self.assertEqual(self.calls.read_text(), calls)  # no cmake and no ninja were started

    def processor_seconds(self):
        """What a start takes of a processor, whatever else it has to do."""
        def used():
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            return usage.ru_utime + usage.ru_stime

        begin = used()
        self.qiao()
        return used() - begin


if __name__ == "__main__":
    unittest.main()
