# SPDX-License-Identifier: GPL-2.0-or-later
# Sourced by check, demo and bench: installs what dmfs needs on a Debian (12 or 13) and builds it.

top=$(cd "$(dirname "$0")/.." && pwd)

build_packages="gcc make pkg-config libc6-dev libfuse3-dev fuse3 libglib2.0-dev libgcrypt20-dev libsqlite3-dev"
# better with them, but not in every release, or not essential
build_optional="libnbd-dev libcryptsetup-dev libkeyutils-dev libisal-dev libxxhash-dev libgnutls28-dev libblkid-dev"
demo_packages="e2fsprogs mount util-linux"
demo_optional="fuse2fs"
test_packages="libcmocka-dev python3 python3-pytest $demo_packages"
test_optional="user-mode-linux dmsetup kmod clang libclang-rt-dev cryptsetup-bin keyutils thin-provisioning-tools qemu-utils
	python3-pytest-xdist nbdkit libnbd-bin sqlite3 jq attr bc file lvm2 kpartx fdisk fio btrfs-progs ntfs-3g mdadm $demo_optional"
# make check-zoned-kernel wants qemu-system-x86 and linux-image-amd64 too, which are large: they are not installed from here
bench_packages="python3 fio $demo_packages"
bench_optional="qemu-system-common qemu-utils nbdkit libnbd-bin"

say() { printf '\n=== %s\n' "$*"; }

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "neither root nor sudo here: please run, as root: $*" >&2
		return 1
	fi
}

installed() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }

# need WHICH...: installs the packages of $WHICH_packages, and those of $WHICH_optional that this release has
need() {
	command -v apt-get >/dev/null || { echo "no apt-get here: install the like of these yourself: $build_packages" >&2; return 0; }
	missing= wished=
	for which; do
		eval "required=\$${which}_packages optional=\$${which}_optional"
		for p in $required; do installed "$p" || missing="$missing $p"; done
		for p in $optional; do installed "$p" || wished="$wished $p"; done
	done
	[ "$missing$wished" ] || return 0
	if [ -z "$(find /var/lib/apt/lists -name '*_Packages*' -mtime -1 2>/dev/null | head -n 1)" ]; then
		say "apt-get update"
		as_root apt-get -q update || [ -z "$missing" ] || return 1
	fi
	for p in $wished; do
		if apt-cache policy "$p" 2>/dev/null | grep -q 'Candidate: [^(]'; then
			missing="$missing $p"
		else
			echo "this release has no $p: going on without"
		fi
	done
	[ "$missing" ] || return 0
	say "apt-get install$missing"
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing
}

# On any usual system everybody may open /dev/fuse; in some containers and small images not even root can yet.
open_fuse() {
	if [ ! -e /dev/fuse ]; then
		as_root modprobe fuse 2>/dev/null
		[ -e /dev/fuse ] || as_root mknod -m 666 /dev/fuse c 10 229 2>/dev/null
	fi
	if [ -e /dev/fuse ] && [ "$(stat -c %a /dev/fuse)" != 666 ]; then
		echo "chmod 666 /dev/fuse, as on any usual system"
		as_root chmod 666 /dev/fuse || true
	fi
	# fusermount3 looks there
	[ -e /etc/mtab ] || as_root ln -s /proc/self/mounts /etc/mtab
	sh -c ': <>/dev/fuse' 2>/dev/null
}
