# shellcheck shell=bash
# Other projects built from Debian's source packages, for their own tests. Kept under target/packages, and built once for all runs. Sourced
# after packages.sh.

# packages_built NAME: the source tree of a package with its programs and its tests built in it; the file `origin` in it names the directory
# that it was built in, which the build wrote into some of its files.
packages_built() {
    local source
    source=$(packages_source "$1") || return
    kept "packages/$1-built" build "$1" "$source"
}
build() {
    tar -xf "$(find "$2" -name '*.orig.tar.*' ! -name '*.asc')" --strip-components=1 &&
        tar -xf "$(find "$2" -name '*.debian.tar.*')" || return
    local change
    while read -r change _; do
        patch -s -p1 <"debian/patches/$change" || return
    done < <(grep -vsE '^(#|$)' debian/patches/series)
    # The path with symbolic links resolved, as make uses it.
    cd -P . && pwd >origin
    "build_$1"
}
# packages_configured NAME: the source tree of a package, configured, as its authors released it: what the distribution changes in it may ask
# for the programs that made the script. The file `origin` is as above.
packages_configured() {
    local source
    source=$(packages_source "$1") || return
    kept "packages/$1-configured" configure "$source"
}
configure() {
    tar -xf "$(find "$1" -name '*.orig.tar.*' ! -name '*.asc')" --strip-components=1 || return
    cd -P . && pwd >origin
    CFLAGS='-O1 -g0' ./configure --quiet
}
build_coreutils() {
    FORCE_UNSAFE_CONFIGURE=1 ./configure --quiet --disable-nls CFLAGS=-O1 && make -j2 --silent all && make -j2 --silent check TESTS= SUBDIRS=.
}
# The program that runs the tests, and the shell that some of them start.
build_sqlite3() {
    ./configure --quiet --enable-all --disable-readline --with-tcl="$(dirname "$(find /usr/lib -name tclConfig.sh -path '*/tcl8*' | head -n 1)")" CFLAGS=-O1 &&
        make -j2 --silent testfixture sqlite3 && find . -name '*.o' -delete
}
build_git() {
    make -j2 --silent NO_CURL=1 NO_EXPAT=1 NO_GETTEXT=1 NO_TCLTK=1 NO_PYTHON=1 NO_OPENSSL=1 NO_INSTALL_HARDLINKS=1 CFLAGS=-O1 all
}
