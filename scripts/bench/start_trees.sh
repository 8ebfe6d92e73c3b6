#!/usr/bin/env bash
# start_trees.sh DIR: root trees of programs out of Debian packages, for cold.py --starts
set -euo pipefail
top=$(realpath -m "${1:?usage: start_trees.sh DIR}")
mkdir -p "$top/debs/partial" "$top/none/partial"
: > "$top/status"
apt_() { apt-get -y -qq -o Dir::State::status="$top/status" -o APT::Install-Recommends=false -o Debug::NoLocking=true "$@"; }
tree() { # NAME PACKAGES...: with all that they depend on
  local name=$1 deb
  shift
  [[ -d $top/$name ]] && return
  apt_ -o Dir::Cache::archives="$top/debs/" --download-only install "$@" > /dev/null
  mkdir -p "$top/$name.new/dev" "$top/$name.new/tmp" "$top/$name.new/proc"
  for deb in $(apt_ -o Dir::Cache::archives="$top/none/" --print-uris install "$@" | awk '{print $2}'); do
    dpkg -x "$top/debs/$deb" "$top/$name.new"
  done
  mknod "$top/$name.new/dev/null" c 1 3
  mknod "$top/$name.new/dev/urandom" c 1 9
  mv "$top/$name.new" "$top/$name"
}
tree shell bash coreutils grep sed
tree nginx nginx-light
tree node nodejs
tree java openjdk-17-jre-headless coreutils
tree postgres postgresql-15
tree go golang-1.19-go
tree perl perl
tree git git
tree ruby ruby
tree php php8.2-cli
tree redis redis-server
tree python python3 python3-requests python3-yaml
