#!/bin/bash
# Gives each domain of a directory to a real libvirtd and keeps what libvirt makes of it.
#
#   libvirtd.sh DIR     for each DIR/NAME.xml (inactive form) and DIR/NAME.live.xml (what is created) writes
#                       DIR/NAME.{inactive,prepare,start,live}; DIR/log tells of failures; DIR/done is written last
#
# libvirtd runs in namespaces of its own, over empty directories of its own: the machine's own is never touched.
set -eu
dir=$(realpath "$1")

if [ "${2-}" != inside ]; then
    exec unshare --mount --net --ipc --pid --uts --fork --kill-child --mount-proc "$BASH" "$0" "$dir" inside
fi

exec > "$dir/log" 2>&1
# libvirt shortens a name by characters of its locale; in C it cuts one that is not ASCII into something it cannot tell QEMU.
export LC_ALL=C.UTF-8
mount --make-rprivate /
hostname troth-domain-test
# The images' own directory is made before tmpfs hides anything that DIR may be below.
exec 9< "$dir"
mkdir -p /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
for d in /run /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do mount -t tmpfs none "$d"; done
mkdir -p /etc/libvirt/hooks /var/lib/libvirt/images /run/troth
ip link set lo up
ip link add br0 type bridge
ip link set br0 up

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
C
cat > /etc/libvirt/qemu.conf <<C
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
user = "root"
group = "root"
C
cat > /etc/libvirt/hooks/qemu <<H
#!/bin/bash
exec cat > "$dir/\$1.\$2.hook"
H
chmod +x /etc/libvirt/hooks/qemu

images=/var/lib/libvirt/images
cp "$dir/kernel" $images/kernel
head -c 4096 /dev/zero > $images/initrd
head -c 2097152 /dev/zero > $images/code.fd
head -c 131072 /dev/zero > $images/vars.fd
echo secret > /run/troth/secret
for i in 1 2 3 4; do qemu-img create -q -f raw $images/raw$i 1M; done
qemu-img create -q -f qcow2 $images/plain.qcow2 1M
qemu-img create -q -f qcow2 $images/base.qcow2 1M
qemu-img create -q -f qcow2 -b $images/base.qcow2 -F qcow2 $images/middle.qcow2
qemu-img create -q -f qcow2 -b $images/middle.qcow2 -F qcow2 $images/top.qcow2

libvirtd -f /etc/libvirt/libvirtd.conf &
libvirtd=$!
virsh="virsh -q -c qemu:///system"
for _ in $(seq 600); do
    [ -S /run/libvirt/libvirt-sock ] && break
    sleep 0.1
done
cat > /run/net.xml <<N
<network><name>lan</name><uuid>99999999-0000-4000-8000-000000000001</uuid><forward mode='bridge'/><bridge name='br0'/></network>
N
$virsh net-define /run/net.xml
$virsh net-start lan

for xml in "$dir"/*.xml; do
    name=$(basename "$xml" .xml)
    case $name in *.live) continue ;; esac
    uuid=$(sed -n 's,.*<uuid>\(.*\)</uuid>.*,\1,p' "$xml" | head -1)
    if ! $virsh define "$xml"; then echo "cannot define $name"; continue; fi
    $virsh dumpxml --inactive "$uuid" > "$dir/$name.inactive"
    if ! $virsh create --paused "$dir/$name.live.xml"; then echo "cannot start $name"; continue; fi
    $virsh dumpxml "$uuid" > "$dir/$name.live"
    $virsh destroy "$uuid"
    for op in prepare start; do
        for f in "$dir"/*.$op.hook; do mv "$f" "$dir/$name.$op"; done
    done
    rm -f "$dir"/*.hook
done
kill $libvirtd
wait $libvirtd || [ $? -gt 128 ] || true
echo done > "$dir/done"
