/* A hostile program of an environment: asks every socket that it finds.
 *
 *   connect PATH...
 *
 * A PATH is a socket, or a directory to look for sockets in. For each that can be connected to it says "reached PATH", and
 * what came of two requests as karapace makes them: "answer PATH DESCRIPTORS TEXT". Ends with "done SOCKETS". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static int sockets;
static const char *const requests[] = {"{\"op\":\"status\"}\n", "{\"op\":\"enter\",\"user\":null}\n"};

/* Whatever the length of its path is: by the directory that it is in. */
static int reach(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char directory[4096];
    const char *name = strrchr(path, '/');
    if (!name || strlen(path) >= sizeof directory)
        return -1;
    snprintf(directory, sizeof directory, "%.*s/", (int)(name - path), path);
    int at = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (at < 0)
        return -1;
    snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d%.80s", at, name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        fd = -1;
    }
    close(at);
    return fd;
}

static void ask(const char *path, const char *request)
{
    int fd = reach(path);
    if (fd < 0)
        return;
    char text[1024], control[CMSG_SPACE(32 * sizeof(int))];
    struct iovec part = {text, sizeof text - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct timeval patience = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    printf("reached %s\n", path);
    if (send(fd, request, strlen(request), MSG_NOSIGNAL) > 0) {
        ssize_t length = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
        if (length > 0) {
            int descriptors = 0;
            for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
                descriptors += (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            text[length] = 0;
            text[strcspn(text, "\n")] = 0;
            printf("answer %s %d %.200s\n", path, descriptors, text);
        }
    }
    close(fd);
}

static int visit(const char *path, const struct stat *found, int kind, struct FTW *at)
{
    (void)kind;
    (void)at;
    if (S_ISSOCK(found->st_mode)) {
        sockets++;
        for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
            ask(path, requests[i]);
    }
    return 0;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        nftw(argv[i], visit, 32, FTW_PHYS);
    printf("done %d\n", sockets);
    return 0;
}
