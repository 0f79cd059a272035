#!/usr/bin/env bash
# What snapshots cost and contain: chosen and ignored paths, names, chains with snapshots removed, and files that are large,
# many or mostly holes.
# runs as: root user
# seconds: 70
. "$(dirname "$0")/../checks.sh"
ENV=chain
DIR=$MOUNTS/$ENV
LIMIT_KIB=$((200 * 1024))

milliseconds() { echo $(($(date +%s%N) / 1000000)); }
# worked ENV: commits it, and prints how long its server worked for that, in milliseconds.
worked() {
    local server before
    server=$(server_of "$1")
    before=$(work_of "$server")
    commit "$1" >/dev/null
    echo $(($(work_of "$server") - before))
}
count() { karapace --json snapshots "$1" | json - 'len(d)'; }
below_limit() {
    local peak
    peak=$(peak_of "$(server_of "$1")")
    echo "note: the serving process had at most $((peak / 1024)) MiB resident"
    below "KiB resident" "$LIMIT_KIB" "$peak"
}

setup() {
    mounted_fixture "$PLAIN/fixture"
}

commits_chosen_paths() {
    echo one >"$DIR/etc/one"
    echo two >"$DIR/etc/two"
    echo changed >"$DIR/etc/keep"
    rm "$DIR/etc/deleted"
    ln -s ../srv/target "$DIR/etc/link"
    echo target >"$DIR/srv/target"
    karapace commit "$ENV" --name some -- /etc/link etc/deleted
    # The link brings its target; of etc/keep and etc/keep-too, one inode, both count.
    printf 'M /etc/keep\nM /etc/keep-too\nA /etc/one\nA /etc/two\n' | diff - "$DIR/.karapace/diff"
    karapace diff "$ENV" | diff - "$DIR/.karapace/diff"
    equal files 4 "$(inspect "$ENV" 'd["dirty_files"]' 2>/dev/null || sed -n 's/^dirty_files: //p' "$DIR/.karapace/status")"
    printf 'D /etc/deleted\nA /etc/link\nA /srv/target\n' >"$TMPDIR/expected"
    karapace diff "$ENV" base some | diff "$TMPDIR/expected" -
    karapace commit "$ENV" -- /etc/keep >/dev/null
    printf 'A /etc/one\nA /etc/two\n' | diff - "$DIR/.karapace/diff"
    [ ! -e "$DIR/.karapace/snapshots/some/etc/one" ]
}

refuses_what_is_not_there() {
    local before
    before=$(count "$ENV")
    refused karapace commit "$ENV" -- /etc/one /no/such/path
    says '/no/such/path.*nothing was changed'
    refused karapace restore "$ENV" base -- /no/such/path
    says '/no/such/path.*nothing was changed'
    refused karapace commit "$ENV" -- /etc/../etc/one
    equal snapshots "$before" "$(count "$ENV")"
    printf 'A /etc/one\nA /etc/two\n' | diff - "$DIR/.karapace/diff"
}

# While a program has the file open and works in its directory.
restores_chosen_paths() {
    mkfifo "$TMPDIR/go" "$TMPDIR/ready"
    echo other >"$DIR/etc/changed.new"
    mv "$DIR/etc/changed.new" "$DIR/etc/changed"
    bash -euc 'cd "$1/etc"; exec 4<changed; cat changed >/dev/null; ls >/dev/null; echo ready >"$2"
        read -r _ <"$3"; cat changed; cat <&4; cat deleted' - "$DIR" "$TMPDIR/ready" "$TMPDIR/go" >"$TMPDIR/seen" &
    read -r _ <"$TMPDIR/ready"
    karapace restore "$ENV" base --keep-times -- /etc/changed /etc/deleted 2>"$TMPDIR/message"
    echo go >"$TMPDIR/go"
    wait $!
    equal seen "to be changed other to be deleted" "$(tr '\n' ' ' <"$TMPDIR/seen" | sed 's/ $//')"
    # The replaced content was saved, and everything else is unchanged.
    has 'uncommitted changes are in' <"$TMPDIR/message"
    equal saved other "$(cat "$DIR/.karapace/snapshots/$(inspect "$ENV" 'd["head"]')/etc/changed")"
    karapace diff "$ENV" | has '^A /etc/one$'
    equal two two "$(cat "$DIR/etc/two")"
    stat -c '%a %Y' "$DIR/etc/changed" | diff - <(stat -c '%a %Y' "$PLAIN/fixture/etc/changed")
}

names_and_references() {
    commit "$ENV" >/dev/null
    echo x >"$DIR/etc/named"
    mkdir "$DIR/.karapace/snapshots/by-mkdir"
    equal head "$(cat "$DIR/.karapace/refs/by-mkdir")" "$(inspect "$ENV" 'd["head"]')"
    karapace --json snapshots "$ENV" | json - 'd[-1]["name"]' | has by-mkdir
    rmdir "$DIR/.karapace/snapshots/by-mkdir"
    [ ! -e "$DIR/.karapace/snapshots/by-mkdir" ]
    local hash
    hash=$(inspect "$ENV" 'd["head"]')
    echo y >"$DIR/etc/named"
    karapace commit "$ENV" --name second --message "a message" >/dev/null
    # Each form in each command that takes a snapshot.
    for reference in "$hash" "${hash:0:8}" '~1'; do
        karapace diff "$ENV" "$reference" second | diff - <(echo 'M /etc/named')
        karapace diff "$ENV" "$reference" | diff - <(echo 'M /etc/named')
        karapace mount "$ENV" "$HOME/view" --snapshot "$reference"
        equal content x "$(cat "$HOME/view/etc/named")"
        karapace umount "$HOME/view"
        karapace restore "$ENV" "$reference" >/dev/null
        equal content x "$(cat "$DIR/etc/named")"
        for back in latest second; do
            karapace restore "$ENV" "$back" >/dev/null
            equal content y "$(cat "$DIR/etc/named")"
        done
    done
    [ -z "$(karapace diff "$ENV" head)" ]
    karapace diff "$ENV" --base | has '^A /etc/named$'
    refused karapace snapshots rm "$ENV" head
    says 'restore another'
    refused karapace snapshots rm "$ENV" base
    refused karapace snapshots rm "$ENV" nosuch
    refused rmdir "$DIR/.karapace/snapshots/$hash"
    [ -d "$DIR/.karapace/snapshots/$hash" ]
    karapace umount "$ENV"
}

# Twenty snapshots, each with a file of its own and one that all change; every second one goes.
chain() {
    karapace import "$TMPDIR/fixture.tar" --name twenty
    karapace mount twenty
    local dir=$MOUNTS/twenty i before freed hash
    mkdir "$TMPDIR/chain"
    for i in $(seq 20); do
        noise "own $i" 300000 >"$dir/srv/own"
        echo "$i" >"$dir/etc/shared"
        mkdir "$dir/srv/d$i"
        noise "$i" 50000 >"$dir/srv/d$i/file"
        [ "$i" -lt 3 ] || rm -r "$dir/srv/d$((i - 2))"
        commit twenty >"$TMPDIR/chain/$i"
        tree "$dir" times >"$TMPDIR/chain/$i.tree"
    done
    karapace gc
    before=$(store_bytes)
    # shellcheck disable=SC2046 # one word a hash
    karapace snapshots rm twenty $(cat "$TMPDIR/chain/"{1,3,5,7,9,11,13,15,17,19}) >/dev/null
    equal snapshots 10 "$(count twenty)"
    refused karapace restore twenty "$(cat "$TMPDIR/chain/7")"
    karapace gc --dry-run
    karapace gc
    freed=$((before - $(store_bytes)))
    echo "note: $freed bytes freed"
    # Each of the ten held a file of 300,000 bytes of its own.
    at_least "bytes freed" 3000000 "$freed"
    karapace verify-store
    equal '~1' "$(cat "$TMPDIR/chain/18")" "$(karapace restore twenty '~1')"
    for i in 2 20 4 18 6 16 8 14 10 12; do
        hash=$(cat "$TMPDIR/chain/$i")
        ctl twenty "restore $hash"
        tree "$dir" times | diff "$TMPDIR/chain/$i.tree" -
    done
    karapace umount twenty
    karapace destroy -y twenty
}

ignored_paths() {
    mkdir -p "$HOME/project"
    printf 'manifest_version = 1\n[base]\nimage = "file://%s"\n[snapshot]\nignore = ["/srv/data", "/var/cache/apt"]\n' \
        "$TMPDIR/fixture.tar" >"$HOME/project/karapace.toml"
    karapace build "$HOME/project/karapace.toml" --name ignoring
    karapace mount ignoring
    local dir=$MOUNTS/ignoring before
    mkdir -p "$dir/var/cache/apt/archives"
    before=$(find "$STORE/store/objects" -type f -size +90k | wc -l)
    noise cache 5000000 >"$dir/var/cache/apt/archives/package"
    noise data 100000 >"$dir/srv/data/large"
    echo x >"$dir/etc/x"
    commit ignoring >/dev/null
    equal "large objects" "$before" "$(find "$STORE/store/objects" -type f -size +90k | wc -l)"
    equal diff "" "$(karapace diff ignoring)"
    karapace diff ignoring base head | diff - <(printf 'A /etc/x\nA /var/cache\n')
    cmp "$PLAIN/fixture/srv/data/large" "$dir/.karapace/snapshots/$(inspect ignoring 'd["head"]')/srv/data/large"
    ctl ignoring 'restore base'
    [ ! -e "$dir/etc/x" ]
    noise cache 5000000 | cmp - "$dir/var/cache/apt/archives/package"
    noise data 100000 | cmp - "$dir/srv/data/large"
    karapace umount ignoring
    karapace mount ignoring
    noise cache 5000000 | cmp - "$dir/var/cache/apt/archives/package"
    karapace umount ignoring
    karapace gc
    karapace verify-store
    karapace destroy -y ignoring
}

# one_byte MIB: a file of that size, committed; one byte changed; prints the milliseconds of work for the second commit.
one_byte() {
    local file=$MOUNTS/costs/srv/$1 before
    noise "$1" $(($1 * 1048576)) >"$file"
    commit costs >/dev/null
    before=$(store_bytes)
    printf x | dd of="$file" bs=1 seek=$(($1 * 524288 + 5)) conv=notrunc status=none
    worked costs
    below "bytes for one byte of $1 MiB" 1048576 $(($(store_bytes) - before)) >&2
}

one_byte_of_1_gib() {
    karapace import "$TMPDIR/fixture.tar" --name costs
    karapace mount costs
    local small large
    small=$(one_byte 64)
    large=$(one_byte 1024)
    echo "note: one byte committed: of 64 MiB $small ms of work, of 1 GiB $large ms"
    # Sixteen times the size; what is proportional to it would take seconds.
    below "ms of work for 1 GiB" $((small * 4 + 100)) "$large"
    below_limit costs
}

many_files() {
    python3 - "$MOUNTS/costs/srv/many" <<'PYTHON'
import os, sys
for directory in range(500):
    path = f"{sys.argv[1]}/{directory}"
    os.makedirs(path)
    for number in range(100):
        with open(f"{path}/{number}", "w") as file:
            file.write(f"file {number} of {directory}\n")
PYTHON
    local first second before grown
    first=$(worked costs)
    before=$(store_bytes)
    echo changed >"$MOUNTS/costs/srv/many/250/50"
    second=$(worked costs)
    grown=$(($(store_bytes) - before))
    echo "note: 50,000 files committed with $first ms of work, one of them changed with $second ms and $grown bytes"
    below "ms of work for the second commit, times 20" "$first" $((second * 20))
    below "bytes for one small file" 1048576 "$grown"
    below_limit costs
}

one_tebibyte_of_holes() {
    local file=$MOUNTS/costs/srv/sparse before start took
    before=$(store_bytes)
    start=$(milliseconds)
    truncate -s 1T "$file"
    noise sparse 1048576 | dd of="$file" bs=64K seek=$((512 * 16384)) iflag=fullblock conv=notrunc status=none
    commit costs >/dev/null
    rm "$file"
    commit costs >/dev/null
    ctl costs 'restore ~1'
    took=$(($(milliseconds) - start))
    equal size $((1 << 40)) "$(stat -c %s "$file")"
    noise sparse 1048576 | cmp - <(dd if="$file" bs=64K skip=$((512 * 16384)) count=16 status=none)
    local grown=$(($(store_bytes) - before))
    echo "note: 1 TiB of holes with 1 MiB in it: committed, removed, restored in $took ms, $grown bytes"
    below ms 30000 "$took"
    below bytes 4194304 "$grown"
    below_limit costs
    karapace umount costs
    karapace destroy -y costs
}

named_snapshots_go_only_when_told() {
    refused karapace destroy -y "$ENV"
    says second
    says "destroy --snapshots"
    inspect "$ENV" 'd["name"]' | has "^$ENV\$"
    karapace destroy -y --snapshots "$ENV"
    refused karapace inspect "$ENV"
}

need "an environment" setup
check "commit of chosen paths, with link targets and all names of an inode" commits_chosen_paths
check "a path that does not exist, or has '..', changes nothing" refuses_what_is_not_there
check "restore of chosen paths, under a program" restores_chosen_paths
check "names, prefixes, ~k, latest, head, base; what cannot be removed" names_and_references
check "every second snapshot of 20 is removed; gc; the others are byte-equal" chain
check "paths that the manifest ignores are in no snapshot, and survive a restore" ignored_paths
if [ "$ACTOR" = root ]; then
    check "changing one byte of 1 GiB costs less than 1 MiB, and no time proportional to its size" one_byte_of_1_gib
    check "changing one of 50,000 files costs less than 1 MiB, and 5% of the time" many_files
    check "1 TiB of holes is committed and restored in seconds and a few MiB" one_tebibyte_of_holes
fi
check "destroy keeps snapshots that have a name unless --snapshots" named_snapshots_go_only_when_told
finish_suite
