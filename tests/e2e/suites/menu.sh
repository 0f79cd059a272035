#!/usr/bin/env bash
# Programs of an environment in the desktop's menu: what a hostile image can put there, what happens to the files, and what
# another user can see meanwhile.
# runs as: root user
# files: MINBASE
. "$(dirname "$0")/../checks.sh"
MENU=$HOME/.local/share/applications
APPS=$MOUNTS/dev/usr/share/applications
# Any program that must not run on the host creates this file.
export MARK=$TMPDIR/mark

# entry NAME LINE...: a .desktop file in the environment with these lines.
entry() {
    local name=$1
    shift
    printf '%s\n' '[Desktop Entry]' 'Type=Application' 'Name=Program' "$@" >"$APPS/$name.desktop"
}

setup() {
    karapace import "$MINBASE_TAR" --name dev
    karapace mount dev
    mkdir -p "$APPS" "$MOUNTS/dev/usr/share/pixmaps" "$MOUNTS/dev$TMPDIR"
    printf '#!/bin/sh\nfor arg; do printf "<%%s>\\n" "$arg"; done\n' >"$MOUNTS/dev/usr/bin/show"
    chmod 0755 "$MOUNTS/dev/usr/bin/show"
    cp "$MOUNTS/dev/bin/true" "$MOUNTS/dev/usr/bin/raised"
    chmod 4755 "$MOUNTS/dev/usr/bin/raised"
    printf picture >"$MOUNTS/dev/usr/share/pixmaps/show.png"
    entry show 'Exec=show "a b" "\\$HOME" "\\`id\\`" "\\"q\\"" "back\\\\slash" "; touch $MARK" 100%% --file=%f' 'Icon=show'
    sed -i "s|; touch \$MARK|; touch $MARK|" "$APPS/show.desktop"
    karapace umount dev
}

# Not mounted, also where a check before this one failed.
at_rest() { karapace umount dev >/dev/null 2>&1 || true; }

# launch NAME [GROUP [FILE]]: starts an exported program, as a desktop that goes by the specification.
launch() { python3 "$SCRATCH/tree/e2e/desktop.py" "$MENU/karapace-dev-$1.desktop" "${2:-Desktop Entry}" "${@:3}"; }

# given_to_a_shell NAME: what a desktop that gives the line to a shell would run: each Exec line, without its field codes.
given_to_a_shell() {
    local line
    # Escapes of all values first.
    sed -n 's/^Exec=//p' "$MENU/karapace-dev-$1.desktop" | sed 's/\\\\/\\/g; s/ %[fFuUick]//g' >"$TMPDIR/lines"
    while read -r line; do sh -c "$line" </dev/null || true; done <"$TMPDIR/lines"
}

arguments_arrive() {
    at_rest
    karapace export-app dev show
    desktop-file-validate "$MENU/karapace-dev-show.desktop"
    not_mounted "$MOUNTS/dev"
    touch "$TMPDIR/a file"
    launch show "Desktop Entry" "$TMPDIR/a file" >"$TMPDIR/shown"
    printf '<%s>\n' 'a b' "\$HOME" "\`id\`" '"q"' "back\\slash" "; touch $MARK" '100%' "--file=$TMPDIR/a file" |
        diff - "$TMPDIR/shown"
    given_to_a_shell show | has -F '<a b>'
    [ ! -e "$MARK" ]
}

# passes_not LINE REASON: a file with this line after a valid start must be refused, and nothing
# written.
passes_not() {
    printf '%b' "$1" >"$APPS/bad.desktop"
    refused karapace export-app dev bad
    says "$2"
    [ ! -e "$MENU/karapace-dev-bad.desktop" ]
    karapace export-app dev --list | has -E '^bad ' && wrong "it is listed"
    true
}

hostile_files_are_refused() {
    at_rest
    karapace mount dev
    local head='[Desktop Entry]\nType=Application\nName=Bad\n'
    passes_not "${head}Exec=show; touch $MARK\n" 'line 4: Exec: ; must be'
    passes_not "${head}Exec=show \$(touch $MARK)\n" 'line 4: Exec: . must be'
    passes_not "${head}Exec=show \"\$(touch $MARK)\"\n" 'line 4: Exec: . in quotes needs'
    passes_not "${head}Exec=show \`touch $MARK\`\n" 'line 4: Exec: . must be'
    passes_not "${head}Exec=show > $MARK\n" 'line 4: Exec: > must be'
    passes_not "${head}Exec=sh -c 'touch $MARK'\n" "line 4: Exec: ' must be"
    passes_not "${head}Exec=show \"%f\"\n" 'line 4: Exec: a field code must not be in quotes'
    passes_not "${head}Exec=show \"open\n" 'line 4: Exec: a quote is not closed'
    passes_not "${head}Exec=show \"a\\\\\\\\nb; touch $MARK\"\n" 'line 4: Exec: in quotes, a backslash'
    passes_not "${head}Exec=show \"a\\\\nb\"\n" 'line 4: Exec: it has the control character'
    passes_not "${head}Exec=show\nExec[\$e]=touch $MARK\n" 'line 5: Exec\[\$e\]'
    passes_not "${head}Exec[\$e]=touch $MARK\n" 'line 4: Exec\[\$e\]'
    passes_not "${head}Exec=show\nExec[de]=touch $MARK\n" 'line 5: Exec\[de\]'
    passes_not "${head}Exec=show\nName[\$e]=\$(touch $MARK)\n" 'line 5: Name\[\$e\]'
    passes_not "${head}Exec=show\nType=Link\nURL=file:///etc\n" 'line 5: Type: this key appears twice'
    passes_not "${head}Exec=show\n Exec =touch $MARK\n" 'line 5: Exec: this key appears twice'
    passes_not "${head}Exec=show\nActions=x;\n[Desktop Action x]\nName=X\nExec=show \$(touch $MARK)\n" 'line 8: Exec'
    passes_not "${head}Exec=show\n[Desktop Entry]\nExec=touch $MARK\n" 'line 5: .*twice'
    passes_not "[Desktop Entry]\nType=Link\nName=Bad\nURL=x\nExec=show\n" 'Type is not Application'
    passes_not "[Desktop Entry]\nType=Application\nName=Bad\\\\n\\\\n\\\\n\nExec=show\n" 'line 3: Name'
    passes_not "[Desktop Entry]\nType=Application\nName=B\x1b[31mad\nExec=show\n" 'line 3: Name'
    passes_not "Exec=touch $MARK\n${head}Exec=show\n" 'line 1'
    # Nor from an environment that is not mounted.
    karapace umount dev
    refused karapace export-app dev bad
    says 'line 1'
    karapace mount dev
    rm "$APPS/bad.desktop"
    karapace umount dev
    [ ! -e "$MARK" ]
}

what_passes_runs_inside() {
    at_rest
    karapace mount dev
    # A command for a shell inside, which is the program's own business.
    entry shell "Exec=sh -c \"touch $MARK && echo inside\"" 'X-KDE-SubstituteUID=true' 'X-KDE-Username=root' "TryExec=touch $MARK" \
        'DBusActivatable=true' 'Path[$e]=$(touch '"$MARK"')' 'Categories=Utility;' 'MimeType=text/plain;' 'Comment=Says a word' \
        'Actions=go;gone;' '' '[Desktop Action go]' 'Name=Go' "Exec=sh -c \"touch $MARK && echo gone\"" '' '[X-Other]' "Exec=touch $MARK"
    karapace umount dev
    karapace -v export-app dev shell 2>"$TMPDIR/said"
    grep -q 'left out of shell: X-KDE-SubstituteUID' "$TMPDIR/said"
    local file=$MENU/karapace-dev-shell.desktop
    desktop-file-validate "$file"
    cat "$file"
    if grep -E 'KDE|TryExec|DBus|Path|Other|gone;' "$file"; then wrong "it passed"; fi
    equal "inside" inside "$(launch shell)"
    equal "an action" gone "$(launch shell "Desktop Action go")"
    equal "by a shell" "inside gone" "$(given_to_a_shell shell | tr '\n' ' ' | sed 's/ $//')"
    [ ! -e "$MARK" ] || wrong "it ran on the host"
    karapace mount dev
    [ -e "$MOUNTS/dev$MARK" ] || wrong "it did not run inside"
    karapace umount dev
    karapace export-app dev shell --remove
}

names_do_not_decide() {
    at_rest
    karapace clone --commit dev --name dev-x
    karapace mount dev
    entry x-show 'Exec=show x'
    karapace umount dev
    karapace export-app dev x-show
    # The program `show` of dev-x would have the same file name.
    refused karapace export-app dev-x show
    says 'of the environment dev in '
    karapace destroy -y --snapshots dev-x
    [ -e "$MENU/karapace-dev-x-show.desktop" ]
    # An environment of that name in another store.
    local other=(karapace --store "$TMPDIR/other")
    fixture "$TMPDIR/small"
    mkdir -p "$TMPDIR/small/usr/share/applications"
    printf '[Desktop Entry]\nType=Application\nName=Other\nExec=other\n' >"$TMPDIR/small/usr/share/applications/own.desktop"
    fixture_tar "$TMPDIR/small" "$TMPDIR/small.tar"
    "${other[@]}" import "$TMPDIR/small.tar" --name dev
    "${other[@]}" export-app dev own
    "${other[@]}" rename dev else
    [ -e "$MENU/karapace-else-own.desktop" ] && [ ! -e "$MENU/karapace-dev-own.desktop" ]
    grep -q "^Exec=.* --store $TMPDIR/other exec else -- other$" "$MENU/karapace-else-own.desktop"
    "${other[@]}" rename else dev
    refused "${other[@]}" export-app dev show --remove
    says 'of the environment dev in '
    "${other[@]}" destroy -y dev
    [ ! -e "$MENU/karapace-dev-own.desktop" ]
    for app in show x-show; do [ -e "$MENU/karapace-dev-$app.desktop" ] || wrong "$app is gone"; done
    karapace export-app dev x-show --remove
}

they_follow_a_rename() {
    at_rest
    local icon=$HOME/.local/share/icons/karapace-renamed-show.png
    cp "$MENU/karapace-dev-show.desktop" "$TMPDIR/before"
    karapace rename dev renamed
    [ ! -e "$MENU/karapace-dev-show.desktop" ]
    desktop-file-validate "$MENU/karapace-renamed-show.desktop"
    equal icon "$icon" "$(sed -n 's/^Icon=//p' "$MENU/karapace-renamed-show.desktop")"
    equal picture picture "$(cat "$icon")"
    equal "lines that changed" 4 "$(diff "$TMPDIR/before" "$MENU/karapace-renamed-show.desktop" | grep -c '^>')"
    python3 "$SCRATCH/tree/e2e/desktop.py" "$MENU/karapace-renamed-show.desktop" "Desktop Entry" | has -F '<a b>'
    karapace rename renamed dev
    diff "$TMPDIR/before" "$MENU/karapace-dev-show.desktop"
}

they_outlive_a_rebuild() {
    printf 'manifest_version = 1\n[base]\nimage = "%s"\n' "$TMPDIR/small.tar" >"$TMPDIR/karapace.toml"
    karapace build "$TMPDIR/karapace.toml" --name built
    karapace export-app built own
    karapace rebuild "$TMPDIR/karapace.toml" --name built
    karapace export-app built --list | has "$MENU/karapace-built-own.desktop"
    karapace destroy -y --snapshots built
    [ ! -e "$MENU/karapace-built-own.desktop" ]
}

they_go_with_the_environment() {
    at_rest
    printf 'mine' >"$MENU/karapace-dev-mine.desktop"
    karapace destroy -y --snapshots dev
    equal left "$MENU/karapace-dev-mine.desktop" "$(find "$HOME/.local/share/applications" "$HOME/.local/share/icons" -name 'karapace-*')"
    rm "$MENU/karapace-dev-mine.desktop"
}

# onlooking COMMAND...: runs it while another user looks on; what that saw is in $TMPDIR/seen.
onlooking() {
    local onlooker status=0
    install -o 65534 -m 0644 /dev/null "$TMPDIR/seen"
    setpriv --reuid 65534 --regid 65534 --clear-groups python3 "$SCRATCH/tree/e2e/onlooker.py" usr/bin/raised "$TMPDIR/seen" &
    onlooker=$!
    until_true grep -q ready "$TMPDIR/seen"
    "$@" || status=$?
    kill "$onlooker"
    wait "$onlooker" || true
    cat "$TMPDIR/seen"
    return "$status"
}

export_repeatedly() { for _ in 1 2 3 4 5; do karapace export-app dev show && karapace export-app dev --list; done; }

nobody_sees_an_export() {
    at_rest
    onlooking export_repeatedly
    equal "what another user saw" ready "$(cat "$TMPDIR/seen")"
}

# in_session RUNTIME-DIR: a session that goes on until its mount was seen, and a while.
in_session() {
    XDG_RUNTIME_DIR=$1 karapace exec dev -- sleep 72005 </dev/null &
    local session=$!
    until_true pgrep -fx 'sleep 72005'
    until_true grep -q '^seen ' "$TMPDIR/seen"
    sleep 0.5
    kill "$session"
    status_of 143 wait "$session"
}

nobody_reaches_a_session() {
    at_rest
    local own=$TMPDIR/own open=$TMPDIR/open theirs=$TMPDIR/theirs
    install -d -m 0700 "$own"
    install -d -m 0755 "$open" "$open/karapace"
    install -d -m 0700 "$theirs"
    install -d -m 0777 "$theirs/karapace"
    chown 65534 "$theirs"
    ln -s "$open" "$TMPDIR/link"
    for dir in "$own" "$open" "$theirs" "$TMPDIR/link" "$TMPDIR/link/" /nonexistent; do
        onlooking in_session "$dir"
        grep -q '^seen ' "$TMPDIR/seen" || wrong "with $dir the onlooker saw no mount: this shows nothing"
        if grep '^reached' "$TMPDIR/seen"; then wrong "with $dir another user got in"; fi
    done
    # It can see and reach one that is open, as a mount of root's is.
    karapace mount dev "$TMPDIR/mounted"
    onlooking until_true grep -q "^reached $TMPDIR/mounted" "$TMPDIR/seen"
    karapace umount dev
}

need "setup" setup
check "arguments arrive as they are written, quoted again" arguments_arrive
check "hostile .desktop files are refused with the line number" hostile_files_are_refused
check "what is accepted runs inside, even if a desktop gives the line to a shell" what_passes_runs_inside
if [ "$ACTOR" = root ]; then
    check "export-app mounts nothing that another user could see" nobody_sees_an_export
    check "another user gets into no session's mount, whatever XDG_RUNTIME_DIR is" nobody_reaches_a_session
fi
check "files belong to the environment and store that they name" names_do_not_decide
check "exported programs follow a rename" they_follow_a_rename
check "exported programs survive a rebuild" they_outlive_a_rebuild
check "destroy removes the environment's exported programs, and no others" they_go_with_the_environment
finish_suite
