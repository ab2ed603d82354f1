# Runs a libvirtd over empty directories of its own until standard input ends, with its socket in the directory $1.
# It is process 1 of its namespaces (Start, in libvirtd.go): when it ends, so does all that it started.
set -eu
dir=$1
mount --make-rprivate /
hostname troth-differential
# The socket's directory is held before something covers a directory that it may be below.
mkdir -p /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
for d in /run /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do mount -t tmpfs none "$d"; done
ip link set lo up

# libvirt's driver needs its user even where the package did not make one.
cp /etc/passwd /run/passwd
cp /etc/group /run/group
grep -q ^libvirt-qemu: /run/passwd || echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >> /run/passwd
grep -q ^libvirt-qemu: /run/group || echo 'libvirt-qemu:x:64055:' >> /run/group
grep -q ^kvm: /run/group || echo 'kvm:x:64056:' >> /run/group
mount --bind /run/passwd /etc/passwd
mount --bind /run/group /etc/group

cat > /etc/libvirt/libvirtd.conf <<C
host_uuid = "11111111-2222-3333-4444-555555555555"
auth_unix_rw = "none"
unix_sock_dir = "$dir"
log_outputs = "4:stderr"
C
cat > /etc/libvirt/qemu.conf <<C
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
user = "root"
group = "root"
C
libvirtd -f /etc/libvirt/libvirtd.conf > /dev/null &
libvirtd=$!
for _ in $(seq 500); do
    [ -S "$dir/libvirt-sock" ] && break
    sleep 0.1
done
[ -S "$dir/libvirt-sock" ]
echo ready
cat > /dev/null # until the caller goes
kill $libvirtd || true
wait $libvirtd # its status is ours: zero if it lived until now
