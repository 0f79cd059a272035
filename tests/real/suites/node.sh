#!/usr/bin/env bash
# npm and pnpm with 20,000 files: installed from archives made here, updated, removed; pnpm by hard links and by copies
# runs as: root user
# files: PNPM
. "$(dirname "$0")/../common.sh"
environment node
export npm_config_update_notifier=false npm_config_fund=false npm_config_audit=false npm_config_offline=true NO_UPDATE_NOTIFIER=1
export CI=true

# Forty packages of 500 files, some of which need others; and a project that needs all.
setup() {
    make_environment
    mkdir "$TMPDIR/pnpm"
    tar -xf "$PNPM_PACKAGE"/pnpm-*.tgz -C "$TMPDIR/pnpm"
    # Named from the project: pnpm makes names of directories of that.
    python3 - "$EXT4/packages" "$TMPDIR/project" <<'PYTHON'
import io, json, os, sys, tarfile
archives, project = sys.argv[1:]
os.makedirs(archives)
os.makedirs(project)

def package(name, version, files):
    entries = {"package.json": json.dumps({"name": name, "version": version, "main": "index.js", "bin": {name: "bin.js"}}),
               "index.js": f"module.exports = '{name}@{version}';\n", "bin.js": f"#!/usr/bin/env node\nconsole.log('{name}');\n"}
    for n in range(files):
        entries[f"lib/d{n % 23}/e{n % 7}/f{n}.js"] = f"// {name} {n % 3 and version}\nexports.n = {n};\n" * (n % 30 + 1)
    with tarfile.open(f"{archives}/{name}-{version}.tgz", "w:gz", compresslevel=1) as out:
        for path, text in entries.items():
            info = tarfile.TarInfo("package/" + path)
            info.size, info.mode, info.mtime = len(text), 0o755 if path == "bin.js" else 0o644, 499162500
            out.addfile(info, io.BytesIO(text.encode()))

for n in range(40):
    for version in ("1.0.0", "2.0.0") if n < 10 else ("1.0.0",):
        package(f"p{n}", version, 500)
for name, version in (("one", "1.0.0"), ("two", "2.0.0")):
    needs = {f"p{n}": f"file:../packages/p{n}-{version if n < 10 else '1.0.0'}.tgz" for n in range(40)}
    with open(f"{project}/package.{name}.json", "w") as out:
        json.dump({"name": "project", "version": "1.0.0", "private": True, "dependencies": needs}, out, indent=1)
with open(f"{project}/index.js", "w") as out:
    out.write("console.log([...Array(40).keys()].map(n => require('p' + n) + require('p' + n + '/lib/d3/e3/f3.js').n).join())\n")
PYTHON
    cp -r "$EXT4/packages" "$WORK/packages"
}

# begin DIRECTORY: the project, as its first version.
begin() {
    rm -rf "$1/project"
    cp -r "$TMPDIR/project" "$1/project"
    cp "$1/project/package.one.json" "$1/project/package.json"
}
run() { (cd "$1/project" && node index.js && PATH=$PWD/node_modules/.bin:$PATH p7); }
npm_() { (cd "$1/project" && npm --cache "$1/cache" "${@:2}"); }
pnpm_() { (cd "$1/project" && node "$TMPDIR/pnpm/package/bin/pnpm.cjs" --store-dir "$1/store" "${@:2}"); }

# Times of their own, names of the directory, caches by the time: of those the rest.
same_modules() {
    local base
    for base in "$EXT4" "$WORK"; do
        (cd "$base/project" && find . -type f \( -name .modules.yaml -o -name .package-lock.json -o -name '.pnpm-workspace-state*' \) -exec rm {} +
            # The directories above it.
            find . -path '*/.bin/*' -type f -exec sed -i /NODE_PATH/d {} +
            grep -rlIF "$base" . | tr '\n' '\0' | xargs -0 -r sed -i "s|$base|BASE|g" || true)
    done
    same_attributes "$EXT4/project" "$WORK/project" --no-times
    [ "$(find "$WORK/project/node_modules" -type f | wc -l)" -ge 20000 ]
}

install_npm() {
    begin "$1"
    npm_ "$1" install --silent
    run "$1"
    npm_ "$1" ls >/dev/null
    # Over what is there; then anew from the lock file.
    cp "$1/project/package.two.json" "$1/project/package.json"
    npm_ "$1" install --silent
    run "$1"
    npm_ "$1" ci --silent
    run "$1"
    npm_ "$1" ls | sed "s|$1||"
    npm_ "$1" cache verify >/dev/null
}
npm_is_the_same() {
    install_npm "$EXT4" >"$TMPDIR/npm.ext4"
    with_commits "$MOUNTS/$ENV" install_npm "$WORK" >"$TMPDIR/npm.mount"
    diff "$TMPDIR/npm.ext4" <(grep -v '^note: ' "$TMPDIR/npm.mount")
    grep '^note: ' "$TMPDIR/npm.mount"
    grep -q p0@2.0.0 "$TMPDIR/npm.mount"
    same_modules
}

install_pnpm() {
    begin "$1"
    pnpm_ "$1" install --silent --package-import-method "$2"
    run "$1"
    [ "$2" = hardlink ] || return 0
    cp "$1/project/package.two.json" "$1/project/package.json"
    pnpm_ "$1" install --silent --no-frozen-lockfile --package-import-method "$2"
    run "$1"
    pnpm_ "$1" store status
    rm -r "$1/project/node_modules"
    pnpm_ "$1" install --silent --frozen-lockfile --package-import-method "$2"
    run "$1"
}
pnpm_is_the_same() {
    install_pnpm "$EXT4" "$1" >"$TMPDIR/pnpm.ext4"
    with_commits "$MOUNTS/$ENV" install_pnpm "$WORK" "$1" >"$TMPDIR/pnpm.mount"
    diff "$TMPDIR/pnpm.ext4" <(grep -v '^note: ' "$TMPDIR/pnpm.mount")
    grep '^note: ' "$TMPDIR/pnpm.mount"
    if [ "$1" = hardlink ]; then
        [ "$(find "$WORK/project/node_modules" -name f3.js -links +1 | wc -l)" -eq 40 ] || wrong "no hard links"
    fi
    same_modules
}

# node_modules removed and brought back, as one does with a branch; the links into pnpm's store with it.
restored() {
    local project=$WORK/project
    begin "$WORK"
    pnpm_ "$WORK" install --silent --package-import-method hardlink
    tree "$project" times >"$TMPDIR/before"
    ctl "$ENV" "commit name=then"
    cp "$project/package.two.json" "$project/package.json"
    pnpm_ "$WORK" install --silent --no-frozen-lockfile --package-import-method hardlink
    tree "$project" times | cmp -s "$TMPDIR/before" - && wrong "nothing changed"
    rm -r "$project/node_modules/.pnpm"
    ctl "$ENV" "restore then"
    tree "$project" times | diff "$TMPDIR/before" - | head -n 20
    tree "$project" times | cmp "$TMPDIR/before" -
    run "$WORK"
    pnpm_ "$WORK" store status
    remounted
    tree "$project" times | cmp "$TMPDIR/before" -
    pnpm_ "$WORK" install --silent --frozen-lockfile --package-import-method hardlink
    run "$WORK"
}

removed() {
    rm -r "$WORK/project" "$WORK/store" "$WORK/cache" "$WORK/packages"
    equal "what is left" "" "$(ls -A "$WORK")"
}

need "an environment; forty packages of 500 files" setup
check "npm install, update, ci: the same trees, with commits beside it" npm_is_the_same
check "pnpm by hard links: the same, with commits beside it" pnpm_is_the_same hardlink
check "pnpm by copies: the same, with commits beside it" pnpm_is_the_same copy
check "a restore in the middle, and a remount" restored
check "rm -r of it" removed
check "umount and verify-store" is_whole
finish_suite
