# shellcheck shell=bash
# Checks of pages in docs/ that name tests. Sourced after common.sh, in the root of the tree.

# test_exists NAME: a test as the pages name it. `e2e SUITE: CHECK`; `runtime: NAME`, one of tests/runtime; else a path of modules and
# the test's function: of a crate's own tests (store::, fs::, engine::, process::, runtime::) or of tests/ in fs or here.
test_exists() {
    local suite title module file
    case $1 in
    'e2e '*)
        suite=${1#e2e }
        title=${suite#*: }
        grep -qF -e "check \"$title\"" -e "need \"$title\"" "tests/e2e/suites/${suite%%: *}.sh" 2>/dev/null
        return
        ;;
    'runtime: '*)
        grep -qF "(\"${1#runtime: }\", " tests/runtime/*.rs
        return
        ;;
    esac
    module=$(printf '%s' "${1%::*}" | sed 's,::,/,g')
    for file in "store/src/${module#store/}.rs" "fs/src/${module#fs/}.rs" "src/$module.rs" "src/$module/tests.rs" "fs/tests/$module.rs" "tests/$module.rs" "tests/$module/main.rs"; do
        grep -A3 '#\[test\]' "$file" 2>/dev/null | grep -q "fn ${1##*::}()" && return
    done
    return 1
}

# promises_page PAGE: every test that the page's tables of promises name exists, and every promise names one (or the model test).
promises_page() {
    local page=$1 name row status=0
    while read -r name; do
        test_exists "$name" || {
            echo "$page names a test that does not exist: $name"
            status=1
        }
    done < <(grep -oE '`((e2e [a-z-]+|runtime): [^`]+|(model|view|mount|kernel|concurrency|store::[a-z0-9_]+|fs|engine|image|escapes|process|runtime)(::[a-z0-9_]+)+)`' "$page" | tr -d '`' | sort -u)
    while read -r row; do
        echo "$page: a promise without a test: $row"
        status=1
    done < <(sed -n '/^| promise | test |$/,/^$/p' "$page" | grep -vE '^(\| promise|\|---|$)' |
        grep -vE '\|[^|]*(model|::|e2e |runtime: |DURABILITY\.md)[^|]*\|$')
    return "$status"
}

# kernel_page: docs/KERNEL.md and the tests of fs/tests/kernel name each other, both ways. Functions that a test runs again in a child
# process (`child_…`) are not counted as tests.
kernel_page() {
    diff --label fs/tests/kernel --label docs/KERNEL.md <(
        awk 'FNR == 1 { module = FILENAME; gsub(/.*\/|\.rs$/, "", module) }
            /^#\[test\]/ { test = 1 }
            test && match($0, /^fn [a-z0-9_]+/) { test = 0; print module "::" substr($0, 4, RLENGTH - 3) }' fs/tests/kernel/*.rs |
            grep -v '::child_' | sort
    ) <(grep -oE '`[a-z_]+::[a-z0-9_]+`' docs/KERNEL.md | tr -d '`' | sort -u)
}

# named_files PAGE...: every file of the project that a page names is there. `a/{b,c}.rs` names several; SUITE and such stand for any.
named_files() {
    local page name file status=0
    for page in "$@"; do
        while read -r name; do
            # Safe: the pattern below matches only letters, digits, braces and . _ / , -.
            for file in $(eval "printf '%s\n' $name"); do
                [ -e "$file" ] || {
                    echo "$page names a file that does not exist: $file"
                    status=1
                }
            done
        done < <(grep -oE '`(src|fs|store/src|tests|scripts|docs)/[a-z0-9_./{},-]+`' "$page" | tr -d '`' | sort -u)
    done
    return "$status"
}
