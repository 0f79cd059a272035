/* Makes system calls that a session is to be denied, each by its number: "KIND NAME ANSWER" a line, where KIND is `denied`
 * for those of docs/SECURITY.md and `other` for what is let through by design or denied by the kernel, and ANSWER the name
 * of the error, `ok` or what killed the caller.
 *
 * Where a call is let through it must do nothing: each has arguments that the kernel refuses, or that change nothing. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* An address where nothing is, and a descriptor and a process that are not there. */
#define NOWHERE ((void *)1L)
#define NO_FD (-1L)
#define NOBODY 0x7fffffffL
#define TIOCLINUX 0x541c
#define TIOCSTI 0x5412
#ifndef SYS_quotactl_fd
#define SYS_quotactl_fd 443
#endif
#ifndef SYS_set_mempolicy_home_node
#define SYS_set_mempolicy_home_node 450
#endif

static void answer(const char *kind, const char *name, long result)
{
    printf("%s %s %s\n", kind, name, result < 0 ? strerrorname_np(errno) : "ok");
    fflush(stdout);
}
#define CALL(kind, name, ...) answer(kind, #name, syscall(SYS_##name, __VA_ARGS__))
#define DENIED(name, ...) CALL("denied", name, __VA_ARGS__)
#define OTHER(name, ...) CALL("other", name, __VA_ARGS__)

/* Sets the length of the clock's tick to what it is. Where that may not even be asked, to none, which is no length. */
static void set_clock_tick(void)
{
    struct timex tick = {0}, other = {0};
    answer("other", "adjtimex-read", syscall(SYS_adjtimex, &tick));
    tick.modes = ADJ_TICK;
    answer("denied", "adjtimex", syscall(SYS_adjtimex, &tick));
    answer("other", "clock_adjtime-read", syscall(SYS_clock_adjtime, CLOCK_REALTIME, &other));
    other.modes = ADJ_TICK;
    answer("denied", "clock_adjtime", syscall(SYS_clock_adjtime, CLOCK_REALTIME, &other));
}

/* A call in a process of its own, for it may be killed for that. */
static void risk(const char *name, long (*call)(void))
{
    pid_t child = fork();
    if (child == 0) {
        /* Of 32 bits the error comes back as it is. */
        long result = call();
        _exit(result == -1 ? errno : result < 0 ? -result : 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status) && (WTERMSIG(status) == SIGSYS || WTERMSIG(status) == SIGSEGV))
        printf("denied %s EPERM\n", name);
    else
        printf("denied %s %s\n", name, status == 0 ? "ok" : WIFEXITED(status) ? strerrorname_np(WEXITSTATUS(status)) : "killed");
    fflush(stdout);
}
static long type_with_high_bits(void) { return syscall(SYS_ioctl, NO_FD, 1UL << 40 | TIOCSTI, "x"); }
static long paste_with_high_bits(void) { return syscall(SYS_ioctl, NO_FD, 1UL << 40 | TIOCLINUX, "x"); }
#if defined(__x86_64__)
static long keyctl_x32(void) { return syscall(0x40000000 | SYS_keyctl, -1L, 0, 0, 0, 0); }
static long type_x32(void) { return syscall(0x40000000 | 514, NO_FD, TIOCSTI, "x"); }
static long add_key_i386(void)
{
    long result;
    /* With addresses where nothing is. */
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(286L), "b"(1L), "c"(1L), "d"(0L), "S"(0L), "D"(0L)
                     : "memory", "r8", "r9", "r10", "r11");
    return result;
}
#endif

/* The same calls by other ways. */
static void ways_around(void)
{
    risk("ioctl-TIOCSTI-high-bits", type_with_high_bits);
    risk("ioctl-TIOCLINUX-high-bits", paste_with_high_bits);
#if defined(__x86_64__)
    risk("keyctl-x32", keyctl_x32);
    risk("ioctl-TIOCSTI-x32", type_x32);
    risk("add_key-i386", add_key_i386);
#endif
}

int main(void)
{
    DENIED(acct, NOWHERE);
    DENIED(add_key, NOWHERE, NOWHERE, NULL, 0L, 0);
    DENIED(keyctl, -1L, 0, 0, 0, 0);
    DENIED(request_key, NOWHERE, NOWHERE, NULL, 0);
    DENIED(clock_settime, CLOCK_REALTIME, NOWHERE);
    DENIED(settimeofday, NOWHERE, NULL);
    set_clock_tick();
    DENIED(delete_module, NOWHERE, O_NONBLOCK);
    DENIED(init_module, NOWHERE, 0L, NOWHERE);
    DENIED(finit_module, NO_FD, NOWHERE, -1);
    DENIED(kexec_load, 0L, 1L << 30, NOWHERE, -1L);
    DENIED(kexec_file_load, NO_FD, NO_FD, 0L, NOWHERE, -1L);
    DENIED(mbind, NOWHERE, 0L, -1, NOWHERE, 0L, -1);
    DENIED(get_mempolicy, NOWHERE, NOWHERE, 0L, NULL, -1L);
    DENIED(set_mempolicy, -1, NOWHERE, 0L);
    DENIED(set_mempolicy_home_node, 1L, 0L, -1L, -1L);
    DENIED(migrate_pages, NOBODY, 0L, NOWHERE, NOWHERE);
    DENIED(move_pages, NOBODY, 1L, NOWHERE, NULL, NOWHERE, -1);
    DENIED(open_by_handle_at, NO_FD, NOWHERE, 0);
    DENIED(quotactl, 0x7fffffff, NULL, 0, NULL);
    DENIED(quotactl_fd, NO_FD, 0x7fffffff, 0, NULL);
    DENIED(swapon, NOWHERE, 0);
    DENIED(swapoff, NOWHERE);
    DENIED(syslog, 99, NULL, 0);
    answer("denied", "ioctl-TIOCSTI", syscall(SYS_ioctl, NO_FD, TIOCSTI, "x"));
    answer("denied", "ioctl-TIOCLINUX", syscall(SYS_ioctl, NO_FD, TIOCLINUX, "x"));
#if defined(__x86_64__)
    DENIED(iopl, 99);
    DENIED(ioperm, -1L, 1L, 1);
    DENIED(uselib, NOWHERE);
#endif
    ways_around();
    OTHER(reboot, 0, 0, 0, NULL);
    OTHER(bpf, -1, NULL, 0);
    OTHER(perf_event_open, NOWHERE, 0, -1, -1, 0L);
    OTHER(userfaultfd, -1);
    OTHER(io_uring_setup, 0, NOWHERE);
    OTHER(fsopen, NOWHERE, 0);
    OTHER(name_to_handle_at, NO_FD, NOWHERE, NOWHERE, NOWHERE, 0);
    OTHER(fanotify_init, -1, 0);
    OTHER(kcmp, NOBODY, NOBODY, 0, 0L, 0L);
#ifdef SYS_lookup_dcookie
    OTHER(lookup_dcookie, 0L, NOWHERE, 0L);
#endif
#ifdef SYS_nfsservctl
    OTHER(nfsservctl, -1, NOWHERE, NOWHERE);
#endif
    puts("end");
    return 0;
}
