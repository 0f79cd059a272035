// Tries to make what is shown read-only writable: writable DIRECTORY PLACE. Attaches a copy of DIRECTORY without the read-only flag at
// PLACE, by the calls that make one and change it, and makes a file `written` in it. Says which way succeeded.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OPEN_TREE_CLONE 1
#define MOVE_MOUNT_F_EMPTY_PATH 4
#define MOUNT_ATTR_RDONLY 1
#define SYS_OPEN_TREE 428
#define SYS_MOVE_MOUNT 429
#define SYS_MOUNT_SETATTR 442
#define SYS_OPEN_TREE_ATTR 467

struct attributes {
    uint64_t set, clear, propagation, userns_fd;
};

static void use(const char *how, long tree, const char *place) {
    if (tree < 0 || syscall(SYS_MOVE_MOUNT, tree, "", AT_FDCWD, place, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return;
    char path[4096];
    snprintf(path, sizeof path, "%s/written", place);
    if (open(path, O_WRONLY | O_CREAT, 0600) >= 0)
        printf("written by %s\n", how);
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    struct attributes writable = {.clear = MOUNT_ATTR_RDONLY};
    // With what is mounted below, too: a copy without that is refused where those mounts are the host's.
    unsigned flags[] = {0, AT_RECURSIVE};
    for (int i = 0; i < 2; i++) {
        long tree = syscall(SYS_OPEN_TREE_ATTR, AT_FDCWD, argv[1], OPEN_TREE_CLONE | flags[i], &writable, sizeof writable);
        use("open_tree_attr", tree, argv[2]);
        tree = syscall(SYS_OPEN_TREE, AT_FDCWD, argv[1], OPEN_TREE_CLONE | flags[i]);
        if (tree >= 0 &&
            syscall(SYS_MOUNT_SETATTR, tree, "", AT_EMPTY_PATH | flags[i], &writable, sizeof writable) == 0)
            use("mount_setattr", tree, argv[2]);
    }
    puts("done");
    return 0;
}
