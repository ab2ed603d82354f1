#!/bin/bash
# Installs what building, tests and demonstration need from Debian 12, and checks that Go is new enough. It needs root only
# if something is missing. No service is started by it: the tests start their own, in namespaces.
set -euo pipefail

packages=(
	ca-certificates gcc libc6-dev pkg-config libvirt-dev # building
	libvirt-daemon libvirt-clients qemu-system-x86 qemu-utils # hosts
	swtpm swtpm-tools tpm2-tools # TPMs
	busybox-static cpio e2fsprogs # guests
	dbus-daemon polkitd systemd # hosts whose libvirt asks polkit; systemd-analyze
	iproute2 openssl
)

missing=()
for p in "${packages[@]}"; do
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || echo none) == installed ]] || missing+=("$p")
done

if ((${#missing[@]})); then
	if ((EUID != 0)); then
		echo "missing packages; run as root: $0   (${missing[*]})" >&2
		exit 1
	fi
	echo "installing ${#missing[@]} Debian packages: ${missing[*]}"

	# Debian starts services when it installs them, unless this file says no (invoke-rc.d(8)). One that is there is not ours.
	policy=/usr/sbin/policy-rc.d
	log=$(mktemp)
	ours=
	clean() {
		[[ -z $ours ]] || rm -f "$policy"
		rm -f "$log"
	}
	trap clean EXIT
	if [[ ! -e $policy ]]; then
		ours=yes
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi

	install() {
		DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 --no-install-recommends install "${missing[@]}" >"$log" 2>&1
	}
	# The lists are fetched only if the packages cannot be had with those that are there.
	if ! install; then
		apt-get -q -o Acquire::Retries=3 update >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
		install || { cat "$log" >&2; exit 1; }
	fi
fi

# The guest's kernel is downloaded, not installed; that needs the package lists too.
if ((EUID == 0)) && [[ ! -e $(dirname "$0")/../../build/lab-cache/kernel/vmlinuz ]] && [[ -z $(apt-cache depends linux-image-cloud-amd64 2>/dev/null) ]]; then
	echo "fetching Debian's package lists"
	apt-get -q -o Acquire::Retries=3 update >/dev/null
fi

want=1.26
if ! command -v go >/dev/null; then
	echo "Go $want or later is needed and there is none in PATH: https://go.dev/dl/" >&2
	exit 1
fi
have=$(go env GOVERSION 2>/dev/null || go version | cut -d' ' -f3)
have=${have#go}
if [[ $(printf '%s\n' "$want" "${have%%[- ]*}" | sort -V | head -n1) != "$want" ]]; then
	echo "Go $want or later is needed, this is $have: https://go.dev/dl/ (any Go from 1.21 fetches it with GOTOOLCHAIN=auto)" >&2
	exit 1
fi
