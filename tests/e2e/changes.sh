# shellcheck shell=bash
# changes DIRECTORY: prints a script that does to a Debian's files what overlayfs has forms of its own for, and makes files in this new or
# existing directory of the environment. For the suites that compare what is folded with what it should be.
changes() {
    cat <<EOT
set -e
cd /usr/share
mkdir -p bug $1
chmod 2755 bug
echo more >>/etc/issue
chown 33:4 /etc/issue
touch -d 2001-02-03 /etc/hostname
mv common-licenses licences-moved
touch licences-moved/added
rm -rf base-files lintian
mkdir lintian
echo anew >lintian/file
rm /usr/bin/tac
mv /usr/bin/tsort /usr/bin/tsort-moved
ln -s tsort-moved /usr/bin/tsort
chown -h 65533:65533 /usr/bin/tsort
ln /usr/bin/nl $1/nl
cp /usr/bin/nl $1/set-id
chown 33:4 $1/set-id
chmod 6755 $1/set-id
mkfifo -m 600 $1/fifo
truncate -s 3M $1/sparse
yes large | head -c 2000000 >$1/large
touch $1/.wh.version $1/.wh..wh..opq
mkdir $1/sticky
chmod 1777 $1/sticky
cp -a /etc/skel $1/skel
EOT
}
