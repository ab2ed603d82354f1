/* Reaches a running domain by the calls of libvirt's API that virsh has no command for: reach WHAT DOMAIN. It prints what libvirt
 * says and ends 0 when the call was let through, 1 when not. */
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void quiet(void *data, virErrorPtr error) { (void)data; (void)error; }

/* pretend asks libvirt to take this connection for one of the host's process 1, which is root's. */
static int pretend(virConnectPtr conn)
{
    char stat[4096];
    virTypedParameterPtr params = NULL;
    int n = 0, max = 0;
    FILE *file = fopen("/proc/1/stat", "r");
    size_t size = file ? fread(stat, 1, sizeof(stat) - 1, file) : 0;
    stat[size] = 0;
    char *field = strrchr(stat, ')');
    /* Field 22 is the start time, the name before the parenthesis is field 2 (proc(5)). */
    for (int i = 2; field && i < 22; i++)
        field = strchr(field + 1, ' ');
    if (!field)
        return -1;
    if (virTypedParamsAddULLong(&params, &n, &max, VIR_CONNECT_IDENTITY_UNIX_USER_ID, 0) < 0 ||
        virTypedParamsAddString(&params, &n, &max, VIR_CONNECT_IDENTITY_USER_NAME, "root") < 0 ||
        virTypedParamsAddULLong(&params, &n, &max, VIR_CONNECT_IDENTITY_UNIX_GROUP_ID, 0) < 0 ||
        virTypedParamsAddString(&params, &n, &max, VIR_CONNECT_IDENTITY_GROUP_NAME, "root") < 0 ||
        virTypedParamsAddLLong(&params, &n, &max, VIR_CONNECT_IDENTITY_PROCESS_ID, 1) < 0 ||
        virTypedParamsAddULLong(&params, &n, &max, VIR_CONNECT_IDENTITY_PROCESS_TIME, strtoull(field, NULL, 10)) < 0)
        return -1;
    return virConnectSetIdentity(conn, params, n, 0);
}

int main(int argc, char **argv)
{
    char buf[4096];
    int r = -1;
    virSetErrorFunc(NULL, quiet);
    if (argc != 3)
        return 2;
    virConnectPtr conn = virConnectOpen("qemu:///system");
    virDomainPtr dom = conn ? virDomainLookupByName(conn, argv[2]) : NULL;
    if (!dom) {
        printf("%s\n", virGetLastErrorMessage());
        return 2;
    }
    if (!strcmp(argv[1], "as-root"))
        r = pretend(conn) < 0 ? -1 : virDomainMemoryPeek(dom, 0x1000, sizeof(buf), buf, VIR_MEMORY_PHYSICAL);
    else if (!strcmp(argv[1], "mem-read"))
        r = virDomainMemoryPeek(dom, 0x1000, sizeof(buf), buf, VIR_MEMORY_PHYSICAL);
    else if (!strcmp(argv[1], "block-read"))
        r = virDomainBlockPeek(dom, "vda", 0, sizeof(buf), buf, 0);
    else if (!strcmp(argv[1], "open-graphics"))
        r = virDomainOpenGraphicsFD(dom, 0, 0);
    else if (!strcmp(argv[1], "open-device")) {
        virStreamPtr stream = virStreamNew(conn, 0);
        r = stream ? virDomainOpenConsole(dom, NULL, stream, VIR_DOMAIN_CONSOLE_FORCE) : -1;
    } else
        return 2;
    printf("%s\n", r < 0 ? virGetLastErrorMessage() : "let through");
    return r < 0;
}
