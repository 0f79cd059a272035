#!/usr/bin/env bash
# Clones, du, keeping snapshots, completions in real shells, manual pages, doctor, everything mounted at once, programs in
# the desktop's menu.
# runs as: root user
. "$(dirname "$0")/../checks.sh"
ALL=$HOME/karapace

setup() {
    fixture "$PLAIN/fixture"
    mkdir -p "$PLAIN/fixture/usr/share/applications" "$PLAIN/fixture/usr/share/pixmaps"
    printf '[Desktop Entry]\nType=Application\nName=Tool\nExec=hello %%U\nIcon=tool\nCategories=Utility;\n' \
        >"$PLAIN/fixture/usr/share/applications/tool.desktop"
    printf 'picture' >"$PLAIN/fixture/usr/share/pixmaps/tool.png"
    fixture_tar "$PLAIN/fixture" "$TMPDIR/fixture.tar"
    karapace import "$TMPDIR/fixture.tar" --name dev
}

clones_live_side_by_side() {
    karapace mount dev
    echo one >"$MOUNTS/dev/etc/one"
    karapace commit dev --name one
    echo two >"$MOUNTS/dev/etc/two"
    local before
    before=$(store_bytes)
    # A clone of a mounted environment, with a note about uncommitted changes.
    karapace clone dev --name second 2>"$TMPDIR/notes"
    grep -q 'uncommitted changes of dev are not in second' "$TMPDIR/notes"
    below "bytes for a clone" 200000 $(($(store_bytes) - before))
    karapace mount second
    equal content one "$(cat "$MOUNTS/second/etc/one")"
    [ ! -e "$MOUNTS/second/etc/two" ]
    echo changed >"$MOUNTS/second/etc/one"
    equal "the first" one "$(cat "$MOUNTS/dev/etc/one")"
    karapace clone dev@base --name third
    karapace clone --commit dev --name fourth
    equal snapshots 2 "$(karapace --json snapshots fourth | json - 'len(d)')"
    karapace umount second
    karapace umount dev
    karapace destroy -y --snapshots dev
    karapace gc
    karapace mount second
    equal "after gc" changed "$(cat "$MOUNTS/second/etc/one")"
    karapace umount second
    karapace verify-store
    karapace rename fourth dev
    for env in second third; do karapace destroy -y --snapshots "$env"; done
}

du_says_what_goes() {
    karapace clone dev --name other
    karapace mount other
    head -c 2000000 /dev/urandom >"$MOUNTS/other/etc/large"
    karapace commit other
    karapace umount other
    karapace gc
    local exclusive
    exclusive=$(karapace --json du other | json - 'd["environment"]["exclusive_bytes"]')
    at_least "exclusive bytes" 2000000 "$exclusive"
    karapace du | has -E '^other +[0-9]+ '
    karapace destroy -y --snapshots other
    equal freed "$exclusive" "$(karapace --json gc --dry-run | json - 'd["bytes"]')"
    equal freed "$exclusive" "$(karapace --json gc | json - 'd["bytes"]')"
}

old_snapshots_go() {
    karapace mount dev
    for i in 1 2 3 4; do
        echo "$i" >"$MOUNTS/dev/etc/counter"
        karapace -q commit dev >"$TMPDIR/newest"
    done
    equal "would go" 3 "$(karapace --json gc --dry-run --keep-last 2 | json - 'len(d["snapshots"])')"
    equal snapshots 6 "$(karapace -q snapshots dev | wc -l)"
    # While it is mounted.
    karapace gc --keep-last 2 | has '3 snapshots'
    equal "all in a week" 0 "$(karapace --json gc --keep-within 1w | json - 'len(d["snapshots"])')"
    karapace -q snapshots dev | tail -n1 | diff - "$TMPDIR/newest"
    karapace snapshots dev | has one
    refused karapace gc --keep-within 7
    says '12h, 7d, 4w'
    karapace umount dev
}

bash_completes() {
    # Does what bash does when Tab is pressed, without a terminal.
    bash -c '
        source <(karapace completions bash)
        complete_line() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMP_TYPE=9
            "$(complete -p karapace | sed -n "s/.*-F \([^ ]*\) .*/\1/p")" karapace "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf "%s\n" "${COMPREPLY[@]}" | sed "s/ *$//"
        }
        complete_line karapace mou | grep -qx mount || exit 1
        complete_line karapace mount d | grep -qx dev || exit 1
        complete_line karapace restore dev o | grep -qx one || exit 1
        complete_line karapace clone dev@o | grep -q one || exit 1
        complete_line karapace new x --template r | grep -qx rust-dev || exit 1
        cd "$TMPDIR" && touch image.tar.xz && complete_line karapace import image | grep -qx image.tar.xz || exit 1
        complete_line karapace --store /nowhere mount d | grep -qx dev && exit 1
        [ ! -e /nowhere ]
    '
}

zsh_completes() {
    zsh -fc 'autoload -Uz compinit; compinit -u -d "$TMPDIR/zcompdump"; source <(karapace completions zsh); print -r -- $_comps[karapace]' | has karapace
    # The words that completion offers.
    _CLAP_IFS=$'\n' _CLAP_COMPLETE_INDEX=2 COMPLETE=zsh karapace -- karapace mount d | has '^dev'
}

fish_completes() {
    fish --no-config -c 'karapace completions fish | source; complete -C "karapace mount d"' | has '^dev'
    fish --no-config -c 'karapace completions fish | source; complete -C "karapace restore dev o"' | has '^one'
}

manual_pages() {
    karapace man-pages "$TMPDIR/man/man1"
    for page in karapace karapace-mount karapace-snapshots-rm; do [ -s "$TMPDIR/man/man1/$page.1" ] || wrong "no $page.1"; done
    for page in "$TMPDIR"/man/man1/*.1; do
        man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null | grep -v '^$' && wrong "$page"
    done
    MANPATH=$TMPDIR/man man karapace-clone | has 'shares all data'
}

doctor_looks() {
    # Where the suites run, nothing that is needed is missing; and no store is created.
    karapace doctor
    karapace --json --store "$TMPDIR/nowhere/store" doctor >"$TMPDIR/doctor.json"
    [ ! -e "$TMPDIR/nowhere" ]
    equal ok True "$(json "$TMPDIR/doctor.json" 'd["ok"]')"
    equal "advice" True "$(json "$TMPDIR/doctor.json" 'all(c["mend"] for c in d["checks"] if c["outcome"] != "ok")')"
}

doctor_finds() {
    local found
    # There is a stale mount; and without fusermount3 on the PATH a user cannot mount.
    karapace mount dev
    kill -9 "$(server_of dev)"
    # The server may take a moment to end.
    until_true bash -c '! ls "$1"' - "$MOUNTS/dev"
    found=$(karapace --json doctor | json - '[c["mend"] for c in d["checks"] if c["name"] == "stale mounts"][0]')
    [[ $found = *"karapace umount '$MOUNTS/dev'"* ]] || wrong "$found"
    karapace umount dev
    [ "$ACTOR" = user ] || return 0
    mkdir -p "$TMPDIR/bin"
    PATH=$TMPDIR/bin status_of 1 "$SCRATCH/bin/karapace" doctor >"$TMPDIR/doctor"
    grep -q 'apt install fuse3' "$TMPDIR/doctor"
}

here() { [ -e "$ALL/$1/etc/os-release" ]; }
not_here() { [ ! -e "$ALL/$1" ]; }

everything_is_mounted() {
    karapace clone dev --name kept
    karapace clone dev --name frozen
    karapace freeze frozen
    karapace clone dev --name away
    karapace freeze away
    karapace archive away
    karapace mount --all
    for env in dev kept frozen; do here "$env"; done
    not_here away
    refused touch "$ALL/frozen/etc/x"
    refused karapace mount --all
    says 'umount --all'
    # One is added, one renamed, one frozen, one destroyed.
    karapace clone dev --name new
    until_true here new
    karapace rename new newer
    until_true here newer
    until_true not_here new
    echo x >"$ALL/newer/etc/x"
    karapace freeze newer
    until_true here newer
    refused touch "$ALL/newer/etc/y"
    karapace destroy -y --snapshots newer
    until_true not_here newer
    here dev
}

served_anew() { local now; now=$(server_of "$1") && [ "$now" != "$2" ]; }

single_failures_stay_single() {
    local server
    server=$(server_of kept)
    kill -9 "$server"
    # The kernel may still show cached entries of a dead mount.
    until_true served_anew kept "$server"
    here kept
    here dev
    # What a user unmounts stays unmounted until it is mounted again explicitly.
    karapace umount kept
    until_true not_here kept
    sleep 2
    not_here kept
    karapace mount kept "$ALL/kept"
    here kept
    # A mount that is in use is not removed.
    (cd "$ALL/dev/etc" && exec sleep 60) &
    local sleeper=$!
    until_true bash -c 'readlink /proc/$1/cwd | grep -q karapace' - "$sleeper"
    refused karapace rename dev other
    kill "$sleeper"
    wait "$sleeper" || true
}

everything_is_unmounted() {
    karapace umount --all
    for env in dev kept frozen; do not_mounted "$ALL/$env"; done
    not_here frozen
    equal mounts '[None]' "$(karapace --json list | json - 'sorted({e["mount"] for e in d}, key=str)')"
    for env in kept frozen away; do karapace destroy -y --snapshots "$env"; done
}

the_unit_is_sound() {
    local unit=$HOME/.config/systemd/user/karapace.service
    karapace mount --all --install-unit | has "$unit"
    grep -q '^ExecStart=.*mount --all --foreground' "$unit"
    XDG_RUNTIME_DIR=$TMPDIR systemd-analyze --user verify "$unit" 2>"$TMPDIR/verify" || true
    # systemd does not run here; systemd-analyze checks the text of the unit.
    if grep 'karapace.service' "$TMPDIR/verify" | grep -v 'man:karapace' | grep .; then wrong "$(cat "$TMPDIR/verify")"; fi
}

a_program_in_the_menu() {
    local file=$HOME/.local/share/applications/karapace-dev-tool.desktop
    karapace export-app dev --list | has -E '^tool +Tool +-$'
    equal path "$file" "$(karapace export-app dev tool)"
    grep -qx 'Name=Tool (dev)' "$file"
    equal icon picture "$(cat "$(sed -n 's/^Icon=//p' "$file")")"
    desktop-file-validate "$file"
    # The line that a desktop would run.
    not_mounted "$MOUNTS/dev"
    sed -n 's/^Exec=\(.*\) hello %U$/\1/p' "$file" >"$TMPDIR/exec"
    [ -s "$TMPDIR/exec" ]
    equal command "$SCRATCH/bin/karapace exec dev --" "$(cat "$TMPDIR/exec")"
    karapace export-app dev --list | has "$file"
    karapace export-app dev tool --remove
    [ ! -e "$file" ]
    refused karapace export-app dev nosuch
    says 'has no program nosuch'
    refused karapace export-app dev ../tool
}

json_errors() {
    status_of 1 karapace --json inspect nosuch 2>"$TMPDIR/error"
    equal kind not-found "$(tail -n1 "$TMPDIR/error" | json - 'd["error"]["kind"]')"
    status_of 125 karapace --json exec nosuch -- true 2>"$TMPDIR/error"
    equal status 125 "$(tail -n1 "$TMPDIR/error" | json - 'd["error"]["status"]')"
    CLICOLOR_FORCE=1 karapace list | has $'\033'
    NO_COLOR=1 CLICOLOR_FORCE=0 karapace list | grep $'\033' && wrong "colours despite NO_COLOR"
    karapace migrate | has 'nothing to migrate'
}

need "setup" setup
check "clones live side by side, and each outlives the other" clones_live_side_by_side
check "gc frees what du reports as exclusive" du_says_what_goes
check "gc --keep-last removes old snapshots, also while mounted, and keeps named ones" old_snapshots_go
check "bash completes commands, environments and snapshots" bash_completes
check "zsh completes them too" zsh_completes
check "fish completes them too" fish_completes
check "manual pages have no warnings" manual_pages
check "doctor finds nothing missing that is needed" doctor_looks
check "doctor names what is wrong and how to fix it" doctor_finds
check "mount --all follows as environments are made, renamed, frozen and destroyed" everything_is_mounted
check "mount --all mounts again after a kill, but not after an unmount" single_failures_stay_single
check "umount --all" everything_is_unmounted
check "the systemd unit is valid" the_unit_is_sound
check "a program of the environment in the desktop's menu" a_program_in_the_menu
check "errors as JSON, colours, migrate" json_errors
finish_suite
