#!/usr/bin/env bash
# Signals, terminals and descriptors: karapace behaves between a shell and a command as chroot does.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
ENV=run
export ENV
export PYTHONPATH=$SCRATCH/tree/e2e PYTHONDONTWRITEBYTECODE=1

setup() {
    karapace import "$MINBASE_TAR" --name "$ENV"
    karapace mount "$ENV"
}

# alone COMMAND...: in a session of its own, so that killing its process group does not kill this suite.
alone() { setsid --wait timeout --foreground --kill-after=5 60 "$@"; }

kill_0() {
    local signal
    for signal in TERM INT HUP KILL; do
        alone bash -c 'karapace exec "$ENV" -- sh -c "kill -$1 0; sleep 1"; echo "went on with $?"' - "$signal" >"$TMPDIR/went" 2>&1 </dev/null ||
            wrong "kill -$signal 0 ended the caller's script"
        grep -qE '^went on with (129|130|143|137)$' "$TMPDIR/went" || wrong "kill -$signal 0: $(cat "$TMPDIR/went")"
    done
}

kill_0_on_a_terminal() {
    python3 - <<'PYTHON'
import sys
from typist import Typist
for form in ('{}', '{} | cat', '{} </dev/null', '{} 2>/dev/null'):
    for signal in ("TERM", "HUP", "KILL"):
        command = form.format(f"karapace exec $ENV -- sh -c 'kill -{signal} 0; sleep 1'")
        t = Typist(["bash", "-c", f"{command}; echo went-$((20+3))"])
        status = t.end()
        if status != 0 or "went-23" not in t.seen:
            sys.exit(f"kill -{signal} 0 in {form!r} ended the script ({status}): {t.seen!r}")
PYTHON
}

passed_on() {
    python3 - <<'PYTHON'
import os, signal, subprocess, sys
script = "trap 'echo got-{0}; exit 9' {0}; echo ready; while :; do sleep 0.05; done"
for name in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "ALRM"):
    for command in ("exec", "enter"):
        p = subprocess.Popen(["karapace", command, os.environ["ENV"], "--", "sh", "-c", script.format(name)],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        p.send_signal(getattr(signal, "SIG" + name))
        rest, _ = p.communicate(timeout=60)
        if (p.returncode, rest) != (9, f"got-{name}\n"):
            sys.exit(f"{command}, {name}: {p.returncode} {rest!r}")
PYTHON
}

pipelines() {
    python3 - <<'PYTHON'
import os
from typist import PROMPT, Shell
t = Shell()
t.line("karapace exec $ENV -- sh -c 'trap \"echo caught-$((1+1)) >&2; exit 3\" INT; echo ready-$((2+2)) >&2; while :; do sleep 0.05; done' | cat")
t.see("ready-4")
t.type("\x03")
t.see("caught-2")
t.see(PROMPT)
# Typed input is read, wherever the output goes.
t.line("karapace exec $ENV -- sh -c 'read line; echo read-$line-$((3+3))' | cat")
t.line("typed")
t.see("read-typed-6")
t.see(PROMPT)
# It starts nothing: a child of vfork that is stopped before it executes keeps its parent from stopping, for any shell.
t.line("karapace exec $ENV -- sh -c 'echo begun-$((4+4)) >&2; until [ -e /root/go ]; do :; done; echo over-$((5+5))' | cat")
t.see("begun-8")
t.type("\x1a")
t.see("Stopped")
t.see(PROMPT)
t.line("fg")
open(os.path.expandvars("$HOME/karapace/$ENV/root/go"), "w").close()
t.see("over-10")
t.see(PROMPT)
t.leave()
PYTHON
}

# A loop around a command that Ctrl-C ends: each shell treats karapace's command as it treats `sleep`.
loops() {
    python3 - <<'PYTHON'
import re, sys, time
from typist import PROMPT, Shell, Typist
LOOP = "for i in 1 2 3; do {0}; echo turn-$i.; done; echo after-$((30+3))."
# A command that Ctrl-C ends, and one that handles it and exits normally, after which loops
# continue.
DIES = "sh -c 'echo ready-$((6+6)); exec sleep 100'"
HANDLES = "sh -c 'trap \"exit 3\" INT; echo ready-$((6+6)); while :; do sleep 0.05; done'"

def what(seen):
    return re.findall(r"turn-\d\.|after-33\.", seen)

def interactive(command):
    t = Shell()
    t.line(LOOP.format(command))
    t.see("ready-12")
    time.sleep(0.3)
    t.type("\x03")
    # The loop may continue once more: a second Ctrl-C ends it.
    end = time.monotonic() + 40
    shown = ""
    while PROMPT not in t.seen and time.monotonic() < end:
        t.read(0.2)
        if "ready-12" in t.seen:
            shown += t.see("ready-12") + " another turn began "
            time.sleep(0.3)
            t.type("\x03")
    shown += t.see(PROMPT)
    t.line("echo still-$((7+7))")
    t.see("still-14")
    t.leave()
    return what(shown) + re.findall("another turn began", shown)

def script(shell, command):
    t = Typist([shell, "-c", LOOP.format(command)])
    t.see("ready-12")
    time.sleep(0.3)
    t.type("\x03")
    turns, end = 1, time.monotonic() + 40
    shown = ""
    while t.read(0.3) and time.monotonic() < end:
        if "ready-12" in t.seen:
            shown += t.see("ready-12")
            turns += 1
            time.sleep(0.3)
            t.type("\x03")
    status = t.end()
    return [status, turns] + what(shown + t.seen)

def compare(name, run):
    same = True
    for kind, command in (("dies of", DIES), ("handles", HANDLES)):
        plain, inside = run(command), run("karapace exec $ENV -- " + command)
        print(f"{name}, a command that {kind} Ctrl-C: alone {plain}, with karapace {inside}")
        same &= plain == inside
    return same

results = [compare("interactive bash", interactive), compare("bash", lambda command: script("bash", command))]
# dash ends by Ctrl-C also where the command does not, for it is hit itself; a command that has the terminal for itself is
# hit alone, and what it does counts.
plain, inside = (script("dash", run + DIES) for run in ("", "karapace exec $ENV -- "))
print(f"dash, a command that dies of Ctrl-C: alone {plain}, with karapace {inside}")
sys.exit(0 if all(results) and plain == inside else 1)
PYTHON
}

in_the_background() {
    python3 - <<'PYTHON'
import sys, time
from typist import PROMPT, Shell
t = Shell()
t.line("karapace enter $ENV &")
t.see(PROMPT)
# It is stopped as soon as it uses the terminal, like any background job.
end = time.monotonic() + 40
while True:
    t.line("jobs; echo listed-$((1+1))")
    listed = t.see("listed-2")
    t.see(PROMPT)
    if "Stopped" in listed:
        break
    if time.monotonic() > end:
        sys.exit(f"not stopped: {listed!r}")
    time.sleep(0.3)
t.line("echo outer-$((3+4))")
t.see("outer-7")
t.see(PROMPT)
t.line("fg")
t.line("echo inner-$((5+6))-$(hostname)")
t.see("inner-11-run")
t.line("exit 5")
t.see(PROMPT)
t.line("echo back-$?-$((7+8))")
t.see("back-5-15")
t.see(PROMPT)
# One that does not use the terminal runs on beside the shell.
t.line("karapace exec $ENV -- sleep 1 & wait $!; echo waited-$?-$((8+8))")
t.see("waited-0-16")
t.leave()
PYTHON
}

job_control() {
    python3 - <<'PYTHON'
from typist import PROMPT, Shell
t = Shell()
# Two processes, the second forked: see above.
t.line("karapace exec $ENV -- sh -c '(echo ready-$((1+1)); exec sleep 100); exit 3'")
t.see("ready-2")
t.type("\x1a")
t.see("Stopped")
t.see(PROMPT)
t.line("echo outer-$((2+2))")
t.see("outer-4")
t.foreground("karapace exec")
t.type("\x03")
t.line("echo status-$?")
t.see("status-130")
t.see(PROMPT)
# A shell inside has jobs of its own.
t.line("karapace enter $ENV -- bash --norc --noediting -i")
t.line("PS1='inner''> '; bind 'set enable-bracketed-paste off' 2>/dev/null")
t.see("inner> ")
t.line("sh -c 'echo ready-$((3+3)); exec sleep 100'")
t.see("ready-6")
t.type("\x1a")
t.see("Stopped")
t.see("inner> ")
t.foreground("sh -c")
t.type("\x03")
t.see("inner> ")
t.line("echo inside-$((4+4)); exit 6")
t.see("inside-8")
t.see(PROMPT)
t.line("echo status-$?-$((5+5))")
t.see("status-6-10")
t.see(PROMPT)
t.line("stty -a")
t.see("isig")
t.leave()
PYTHON
}

need "a Debian, mounted" setup
check "kill 0 inside does not end the caller's script" kill_0
check "kill 0 inside does not end the caller's script on a terminal, in any pipeline" kill_0_on_a_terminal
check "signals that karapace gets are passed on" passed_on
check "Ctrl-C, Ctrl-Z and input in a pipeline" pipelines
check "Ctrl-C ends loops around a command as it does with sleep" loops
check "enter & is stopped until it is brought to the foreground" in_the_background
check "Ctrl-Z and fg, outside and inside" job_control
check "the store is intact" karapace verify-store
finish_suite
