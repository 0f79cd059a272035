"""A program on a pseudo-terminal, typed at as a person would."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time

# A busy machine is slow.
PATIENCE = 40
PROMPT = "outer> "


class Typist:
    def __init__(self, argv):
        self.seen = ""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
            os.execvp(argv[0], argv)

    def type(self, keys):
        os.write(self.master, keys.encode())

    def line(self, text):
        self.type(text + "\n")

    def read(self, seconds):
        """Takes in more output; false at the end of it."""
        if select.select([self.master], [], [], seconds)[0]:
            try:
                more = os.read(self.master, 65536)
            except OSError:
                return False
            if not more:
                return False
            self.seen += more.decode(errors="replace")
        return True

    def see(self, text, seconds=PATIENCE):
        """Waits until the terminal shows this, and returns what it showed before it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            if not self.read(0.2) and text not in self.seen:
                sys.exit(f"ended without {text!r}: {self.seen[-600:]!r}")
            if time.monotonic() > end:
                sys.exit(f"no {text!r} in {self.seen[-600:]!r}")
        before, self.seen = self.seen.split(text, 1)
        return before

    def never(self, text, seconds):
        """The terminal does not show this for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.read(0.2):
                break
        if text in self.seen:
            sys.exit(f"{text!r} in {self.seen[-600:]!r}")

    def end(self, seconds=PATIENCE):
        """Waits for the end, and returns the status as a shell would show it; what was shown last stays in `seen`."""
        deadline = time.monotonic() + seconds
        while self.read(0.2):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while self.read(0.2) and time.monotonic() < deadline and select.select([self.master], [], [], 0.2)[0]:
                    pass
                break
            if time.monotonic() > deadline:
                sys.exit(f"does not end: {self.seen[-600:]!r}")
        else:
            _, status = os.waitpid(self.pid, 0)
        self.pid = None
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code


class Shell(Typist):
    """An interactive bash."""

    def __init__(self):
        super().__init__(["/bin/bash", "--norc", "--noprofile", "--noediting", "-i"])
        # Spelled so that what is typed does not look like the prompt.
        self.line("PS1='outer''> '; bind 'set enable-bracketed-paste off' 2>/dev/null")
        self.see(PROMPT)

    def foreground(self, command):
        """`fg`, and the moment more that the shell takes after it has said which command that is."""
        self.line("fg")
        self.see(command)
        time.sleep(0.5)

    def leave(self):
        """Ends it, and checks that it is the one in the foreground."""
        self.line("exit 77")
        status = self.end()
        if status != 77:
            sys.exit(f"the outer shell ended with {status}: {self.seen[-600:]!r}")
