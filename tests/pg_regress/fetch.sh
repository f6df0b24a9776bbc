#!/usr/bin/env bash
# PostgreSQL's own regression tests, of Debian's source package: `make pg-regress` keeps them in .venv/pg_regress.
# Reads the machine's own list of archives, with a cache of its own: nothing of the machine is changed, and root is not needed.
set -euo pipefail
package="postgresql-15"
folder="$1"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/parts" "$work/lists/partial" "$work/archives/partial"

for list in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ -f "$list" ] && sed -E 's/^Types:.*/Types: deb-src/; s/^deb /deb-src /' "$list" >"$work/parts/debian.${list##*.}"
done
options=(-q -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/parts" -o "Dir::State::lists=$work/lists"
    -o "Dir::Cache=$work" -o "APT::Sandbox::User=$(id -un)")

cd "$work"
apt-get "${options[@]}" update >update.log || { cat update.log >&2; exit 1; }
# The newest first; an archive may list a version that it does not have yet, or no longer.
for version in $(apt-cache "${options[@]}" showsrc "$package" | sed -n 's/^Version: //p' | sort -rVu); do
    apt-get "${options[@]}" source --download-only "$package=$version" >>source.log 2>&1 && break
done
archive="$(ls "${package}"_*.orig.tar.bz2)" || { cat source.log >&2; exit 1; }

rm -rf "$folder.new"
mkdir -p "$folder.new"
tar -xjf "$archive" -C "$folder.new" --strip-components=4 --wildcards \
    "*/src/test/regress/sql/*" "*/src/test/regress/expected/*" "*/src/test/regress/data/*" \
    "*/src/test/regress/parallel_schedule" "*/src/test/regress/resultmap"
rm -rf "$folder"
mv "$folder.new" "$folder"
