# shellcheck shell=bash
# Checks of pages in docs/ that name tests. Sourced after common.sh, in the root of the tree.

# test_exists NAME: a test of docs/SEMANTICS.md, as its first lines explain the names.
test_exists() {
    local suite title module file
    if [[ $1 == 'e2e '* ]]; then
        suite=${1#e2e }
        title=${suite#*: }
        grep -qF -e "check \"$title\"" -e "need \"$title\"" "tests/e2e/suites/${suite%%: *}.sh" 2>/dev/null
        return
    fi
    module=${1%::*}
    case $module in
    fs::*) file=fs/src/$(printf '%s' "${module#fs::}" | sed 's,::,/,g').rs ;;
    engine::*) file=src/$(printf '%s' "$module" | sed 's,::,/,g').rs ;;
    *) file=fs/tests/$(printf '%s' "$module" | sed 's,::,/,g').rs ;;
    esac
    grep -A3 '#\[test\]' "$file" 2>/dev/null | grep -q "fn ${1##*::}()"
}

# semantics_page: every test that the page names exists, and every promise names one (or the model test).
semantics_page() {
    local page=docs/SEMANTICS.md name row status=0
    while read -r name; do
        test_exists "$name" || {
            echo "$page names a test that does not exist: $name"
            status=1
        }
    done < <(grep -oE '`(e2e [a-z-]+: [^`]+|(model|view|mount|kernel|concurrency|fs|engine)(::[a-z0-9_]+)+)`' "$page" | tr -d '`' | sort -u)
    while read -r row; do
        echo "$page: a promise without a test: $row"
        status=1
    done < <(sed -n '/^| promise | test |$/,/^$/p' "$page" | grep -vE '^(\| promise|\|---|$)' |
        grep -vE '\|[^|]*(model|::|e2e |DURABILITY\.md)[^|]*\|$')
    return "$status"
}
