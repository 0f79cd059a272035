#!/usr/bin/env bash
# The control files: commands, replies, errors as errno, and that an error changes nothing.
# runs as: root user
. "$(dirname "$0")/../checks.sh"
ENV=ctl
DIR=$MOUNTS/$ENV
CTL=$DIR/.karapace

setup() {
    mounted_fixture "$PLAIN/fixture"
}

# All that a refused command could have changed.
state() {
    cat "$CTL/diff"
    inspect "$ENV" 'd["head"]'
    ls "$CTL/snapshots" "$CTL/refs"
    tree "$DIR" times
}
unchanged_by() {
    state >"$TMPDIR/state.before"
    "$@"
    state | diff "$TMPDIR/state.before" -
}

hidden_but_there() {
    if find "$DIR" -mindepth 1 -maxdepth 1 -name .karapace | has .; then wrong ".karapace is listed"; fi
    [ -d "$CTL" ]
    grep -q commit "$CTL/help"
    grep -q . "$CTL/version"
    grep -q "$(inspect "$ENV" 'd["env_id"]')" "$CTL/id"
    grep -qi . "$CTL/status"
    json "$CTL/status.json" 'd' >/dev/null
    if mkdir "$CTL" 2>/dev/null; then wrong ".karapace could be made"; fi
}

nonsense_is_einval() {
    refused_with EINVAL "$ENV" nonsense
    grep -q '^error EINVAL' "$CTL/last"
    grep -q nonsense "$CTL/last"
    local message
    message=$(bash -c 'echo nonsense >"$1"' - "$CTL/ctl" 2>&1) && wrong "the shell saw no error"
    [[ $message == *"Invalid argument"* ]] || wrong "the shell said: $message"
}
unknown_words_are_einval() {
    local line
    for line in "commit colour=red" "restore" "restore a b" "gc dry_run=2" "COMMIT" "commit;rm"; do
        refused_with EINVAL "$ENV" "$line"
    done
}
missing_snapshot_is_enoent() {
    refused_with ENOENT "$ENV" "restore 0000"
    grep -q '^error ENOENT' "$CTL/last"
}
too_long_is_e2big() { refused_with E2BIG "$ENV" "commit message=$(printf '%05000d' 0)"; }
several_lines_are_parsed_first() {
    refused_with EINVAL "$ENV" $'commit name=never\nnonsense'
    [ ! -e "$CTL/refs/never" ]
}

redirections_work() {
    local i=0 command
    for command in "echo commit >" "echo commit >>" "echo commit >|" "printf commit >" "printf 'commit\n\n' >" "echo >"; do
        i=$((i + 1))
        echo "$i" >"$DIR/etc/redirection"
        bash -c "$command \"\$1\"" - "$CTL/ctl"
        [ "$command" = "echo >" ] || [ ! -s "$CTL/diff" ] || wrong "nothing was committed by: $command"
        sh -c "$command \"\$1\"" - "$CTL/ctl"
    done
    ctl "$ENV" commit
}

reply_on_the_same_descriptor() {
    local reply
    echo x >>"$DIR/etc/changed"
    exec 3<>"$CTL/ctl"
    echo commit >&3
    read -r reply <&3
    exec 3>&-
    [[ $reply =~ ^ok\ commit\ [0-9a-f]{64} ]] || wrong "the reply was: $reply"
    equal head "$(inspect "$ENV" 'd["head"]')" "$(cut -d' ' -f3 <<<"$reply")"
}

named_and_commented() {
    echo y >>"$DIR/etc/changed"
    ctl "$ENV" "commit name=first message=a few words"
    equal "refs/first" "$(inspect "$ENV" 'd["head"]')" "$(cat "$CTL/refs/first")"
    diff "$DIR/etc/changed" "$CTL/snapshots/first/etc/changed"
    karapace snapshots "$ENV" | grep first | has "a few words"
    echo z >>"$DIR/etc/changed"
    refused_with EEXIST "$ENV" "commit name=first"
    # Nothing was committed under another name either.
    grep -q '^M /etc/changed$' "$CTL/diff"
    ctl "$ENV" "restore first"
    diff "$DIR/etc/changed" "$CTL/snapshots/first/etc/changed"
}

mkdir_commits() {
    echo made >"$DIR/etc/made"
    mkdir "$CTL/snapshots/made"
    equal "refs/made" "$(inspect "$ENV" 'd["head"]')" "$(cat "$CTL/refs/made")"
    if mkdir "$CTL/snapshots/made" 2>/dev/null; then wrong "a name was taken twice"; fi
    rmdir "$CTL/snapshots/made"
    [ ! -e "$CTL/refs/made" ]
    # The name is gone, the snapshot is not.
    [ -e "$CTL/snapshots/$(inspect "$ENV" 'd["head"]')/etc/made" ]
}

references_by_name_prefix_and_age() {
    local first second
    echo 1 >"$DIR/etc/n"
    first=$(commit "$ENV")
    echo 2 >"$DIR/etc/n"
    second=$(commit "$ENV")
    ctl "$ENV" "restore ${first:0:10}"
    equal n 1 "$(cat "$DIR/etc/n")"
    ctl "$ENV" "restore latest"
    equal n 2 "$(cat "$DIR/etc/n")"
    ctl "$ENV" "restore ~1"
    equal n 1 "$(cat "$DIR/etc/n")"
    ctl "$ENV" "restore $second"
    echo 3 >"$DIR/etc/n"
    ctl "$ENV" "restore head"
    equal n 2 "$(cat "$DIR/etc/n")"
}

commit_without_change_adds_nothing() {
    local head before
    head=$(commit "$ENV")
    before=$(objects)
    equal head "$head" "$(commit "$ENV")"
    equal objects "$before" "$(objects)"
}

gc_answers() {
    ctl "$ENV" "gc dry_run=1"
    last "$ENV" | has '^ok'
    ctl "$ENV" gc
    last "$ENV" | has '^ok'
}

# bash can read what git quotes like this between $'…'.
names_are_text() {
    local name=$'x\e[31m\a\r\n\xc2\x9b\xe2\x80\xae\xff' shown path="" entry found=""
    : >"$DIR/etc/$name"
    shown=$(grep '\\033' "$CTL/diff")
    equal "the line of diff" 'A "/etc/x\033[31m\a\r\n\302\233\342\200\256\377"' "$shown"
    karapace diff "$ENV" | grep -qxF "$shown"
    equal "control characters in diff" 0 "$(LC_ALL=C tr -d -c '\000-\011\013-\037\177-\377' <"$CTL/diff" | wc -c)"
    shown=${shown#A \"}
    eval "path=\$'${shown%\"}'"
    equal "the path that it means" "/etc/$name" "$path"
    while IFS= read -r -d '' entry; do
        [ "$entry" != "A $path" ] || found=1
    done < <(karapace diff -z "$ENV")
    [ "$found" ] || wrong "diff -z does not have it"
    rm "$DIR$path"
}

cli_does_the_same_mounted() {
    echo cli >"$DIR/etc/cli"
    karapace diff "$ENV" | has -x 'A /etc/cli'
    karapace commit "$ENV"
    equal diff "" "$(karapace diff "$ENV")"
    equal "diff file" "" "$(cat "$CTL/diff")"
    karapace restore "$ENV" '~1'
    [ ! -e "$DIR/etc/cli" ]
    karapace restore "$ENV" latest
    equal cli cli "$(cat "$DIR/etc/cli")"
}

cli_does_the_same_unmounted() {
    echo unmounted >"$DIR/etc/unmounted"
    karapace umount "$ENV"
    karapace diff "$ENV" | has -x 'A /etc/unmounted'
    karapace commit "$ENV"
    equal diff "" "$(karapace diff "$ENV")"
    karapace restore "$ENV" '~1'
    karapace mount "$ENV"
    [ ! -e "$DIR/etc/unmounted" ]
    karapace umount "$ENV"
    karapace restore "$ENV" latest
    karapace mount "$ENV"
    equal content unmounted "$(cat "$DIR/etc/unmounted")"
}

# refused_alike ERRNO LINE: ctl refuses the line; keeps the reason.
refused_alike() {
    refused_with "$1" "$ENV" "$2"
    last "$ENV" | sed "s/^error $1 //" >>"$TMPDIR/ctl-said"
}
cli_said() {
    refused karapace "$@"
    sed 's/^karapace: //' "$TMPDIR/refused" >>"$TMPDIR/cli-said"
}
bad_input_on_the_command_line() {
    : >"$TMPDIR/cli-said"
    cli_said commit "$ENV" --name a/b
    cli_said commit "$ENV" --name head
    cli_said commit "$ENV" --name again
    cli_said restore "$ENV" ../etc
    cli_said restore "$ENV" '~x'
    cli_said restore "$ENV" 0000
}
both_ways_refuse_alike() {
    ctl "$ENV" "commit name=again"
    : >"$TMPDIR/ctl-said"
    refused_alike EINVAL "commit name=a/b"
    refused_alike EINVAL "commit name=head"
    refused_alike EEXIST "commit name=again"
    refused_alike EINVAL "restore ../etc"
    refused_alike EINVAL "restore ~x"
    refused_alike ENOENT "restore 0000"
    bad_input_on_the_command_line
    diff "$TMPDIR/ctl-said" "$TMPDIR/cli-said"
    karapace umount "$ENV"
    bad_input_on_the_command_line
    diff "$TMPDIR/ctl-said" "$TMPDIR/cli-said"
    karapace mount "$ENV"
}

others_may_not_command() {
    # All users can access root's mount, but only root its control files.
    [ "$ACTOR" = root ] || return 0
    chmod 0755 "$HOME" "$MOUNTS"
    if setpriv --reuid=65534 --regid=65534 --clear-groups sh -c 'echo commit >"$1"' - "$CTL/ctl" 2>/dev/null; then
        wrong "nobody could commit"
    fi
}

ctl_dir_modes() {
    karapace umount "$ENV"
    karapace mount "$ENV" --ctl-dir visible
    find "$DIR" -mindepth 1 -maxdepth 1 -name .karapace | has .
    karapace umount "$ENV"
    karapace mount "$ENV" --ctl-dir disabled
    [ ! -e "$CTL" ]
    # The command line needs no control files.
    echo disabled >"$DIR/etc/disabled"
    karapace commit "$ENV"
    equal diff "" "$(karapace diff "$ENV")"
    karapace umount "$ENV"
    karapace mount "$ENV"
}

snapshot_mount() {
    local hash
    echo old >"$DIR/etc/age"
    hash=$(commit "$ENV")
    echo young >"$DIR/etc/age"
    karapace umount "$ENV"
    mkdir -p "$HOME/snapshot"
    karapace mount "$ENV" "$HOME/snapshot" --snapshot "${hash:0:12}"
    equal content old "$(cat "$HOME/snapshot/etc/age")"
    if echo x 2>/dev/null >"$HOME/snapshot/etc/age"; then wrong "a snapshot could be written"; fi
    karapace umount "$HOME/snapshot"
    not_mounted "$HOME/snapshot"
    karapace mount "$ENV"
    equal content young "$(cat "$DIR/etc/age")"
}

read_only_mount_is_erofs() {
    karapace umount "$ENV"
    karapace mount "$ENV" --read-only
    unchanged_by refused_with EROFS "$ENV" commit
    unchanged_by refused_with EROFS "$ENV" "restore ~1"
    if echo x 2>/dev/null >"$DIR/etc/x"; then wrong "a read-only mount could be written"; fi
    [ ! -e "$DIR/etc/x" ]
    karapace umount "$ENV"
}

# A snapshot that is open through snapshots/ is kept, even if it is removed, until nobody uses it any more.
looked_at_is_kept() {
    head -c 3000000 /dev/urandom >"$DIR/srv/looked-at"
    local sum before after
    sum=$(sha256sum <"$DIR/srv/looked-at")
    before=$(commit "$ENV")
    rm "$DIR/srv/looked-at"
    karapace commit "$ENV" --name after-it >/dev/null
    (
        cd "$CTL/snapshots/$before/srv"
        karapace snapshots rm "$ENV" "$before"
        karapace gc
        equal "the content of a removed snapshot" "$sum" "$(sha256sum <looked-at)"
        karapace verify-store
    )
    after=$(objects)
    not_there() { ! ls "$CTL/snapshots/$before"; }
    freed() { karapace gc && [ "$(objects)" -lt "$after" ]; }
    until_true not_there
    until_true freed
    karapace verify-store
}

frozen_is_erofs() {
    karapace freeze "$ENV"
    equal state frozen "$(inspect "$ENV" 'd["state"].lower()')"
    karapace mount "$ENV"
    unchanged_by refused_with EROFS "$ENV" commit
    grep -q '^error EROFS' "$CTL/last"
    if echo x 2>/dev/null >"$DIR/etc/x"; then wrong "a frozen environment could be written"; fi
    local name
    name=$(karapace --json snapshots "$ENV" | json - 'next(s["name"] for s in d if s["name"])')
    refused rmdir "$CTL/snapshots/$name"
    says 'Read-only file system'
    [ -d "$CTL/snapshots/$name" ]
    refused mkdir "$CTL/snapshots/another"
    refused karapace commit "$ENV"
    karapace umount "$ENV"
}

freezing_a_mounted_one_is_refused() {
    refused karapace freeze "$ENV"
    says mounted
}

need "a small environment, mounted" setup
check ".karapace is hidden, reachable and reserved" hidden_but_there
check "echo nonsense > ctl: EINVAL, last says why, nothing changed" unchanged_by nonsense_is_einval
check "unknown words and wrong arguments: EINVAL, nothing changed" unchanged_by unknown_words_are_einval
check "restore 0000: ENOENT, nothing changed" unchanged_by missing_snapshot_is_enoent
check "more than 4 KiB: E2BIG, nothing changed" unchanged_by too_long_is_e2big
check "several lines are parsed whole before the first runs" unchanged_by several_lines_are_parsed_first
check ">, >>, >|, no newline, an empty line; bash and dash" redirections_work
check "the reply is read from the descriptor that wrote" reply_on_the_same_descriptor
check "commit name= message=; a taken name is EEXIST" named_and_commented
check "mkdir and rmdir in snapshots/ commit and drop the name" mkdir_commits
check "restore by prefix, latest, head and ~k" references_by_name_prefix_and_age
check "commit with no change gives the head and adds nothing" commit_without_change_adds_nothing
check "gc and gc dry_run=1 answer" gc_answers
check "names of any bytes are text in diff, and can be read back" names_are_text
check "commit, diff, restore on the command line while mounted" cli_does_the_same_mounted
check "commit, diff, restore on the command line while not mounted" cli_does_the_same_unmounted
check "ctl, the command line while mounted and while not: the same refusals" both_ways_refuse_alike
check "only the mount's owner may command" others_may_not_command
check "--ctl-dir visible and disabled" ctl_dir_modes
check "--snapshot mounts an old state read-only" snapshot_mount
check "a snapshot that is looked at stays until nobody looks" looked_at_is_kept
check "freeze is refused while mounted" freezing_a_mounted_one_is_refused
check "--read-only: EROFS, nothing changed" read_only_mount_is_erofs
check "frozen: EROFS, nothing changed" frozen_is_erofs
finish_suite
