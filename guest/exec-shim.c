// exec-shim: turns a fresh child of envd into what was asked for, then becomes the program.
//
//   exec-shim [-u UID] [-g GID] [-G GID,GID...] [-o OOM_SCORE_ADJ] [-n NICE] [-f OPEN_FILES] [-c CGROUP.PROCS]
//             [-d DIRECTORY] [-t] -- COMMAND [ARGUMENT...]
//
// Only what is asked for is done, so it also works without root. The environment is the program's. Small and static:
// it runs before every program of the guest, often under an emulator, in root file systems that may have no C library.
//
// Exit status when the program cannot be started, as a shell's: 127 not found, 126 found but not to be run. 125: the
// shim itself was called wrongly or could not do what it was told.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_GROUPS 1024

static void say(const char *what, const char *why)
{
    // dprintf, since stdio streams would only be dragged in for this.
    dprintf(STDERR_FILENO, "%s: %s\n", what, why);
}

static _Noreturn void fail(int status, const char *what)
{
    say(what, strerror(errno));
    _exit(status);
}

static long number(const char *text)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end) {
        say(text, "not a number");
        _exit(125);
    }
    return value;
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fail(125, path);
    close(fd);
}

static void set_groups(char *list)
{
    gid_t groups[MAX_GROUPS];
    size_t count = 0;
    for (char *item = strtok(list, ","); item; item = strtok(NULL, ",")) {
        if (count == MAX_GROUPS) {
            say("groups", "too many");
            _exit(125);
        }
        groups[count++] = (gid_t)number(item);
    }
    if (setgroups(count, groups))
        fail(125, "setgroups");
}

// Ignored signals and the mask survive exec (signal(7)); everything else execve resets itself.
static void reset_signals(void)
{
    sigset_t none;
    // The kernel's struct sigaction, all zero: SIG_DFL. Past libc, which keeps two signals to itself, although its
    // own posix_spawn ignores them in the child. Fails for SIGKILL and SIGSTOP, which need no reset.
    static const unsigned long by_default[8];
    for (long signum = 1; signum <= 64; signum++)
        syscall(SYS_rt_sigaction, signum, by_default, NULL, 8L);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

// envd raises its own soft limit; programs that loop over all possible descriptors want the customary one.
static void limit_files(long soft)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        fail(125, "getrlimit");
    if ((rlim_t)soft < limit.rlim_cur)
        limit.rlim_cur = (rlim_t)soft;
    if (setrlimit(RLIMIT_NOFILE, &limit))
        fail(125, "setrlimit");
}

static _Noreturn void become(char **command)
{
    execvp(command[0], command);
    int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
        say(command[0], strchr(command[0], '/') ? strerror(error) : "command not found");
        _exit(127);
    }
    fail(126, command[0]);
}

int main(int argc, char **argv)
{
    const char *uid = NULL, *gid = NULL, *oom = NULL, *nice_value = NULL, *files = NULL, *cgroup = NULL;
    const char *directory = NULL;
    char *groups = NULL;
    int terminal = 0, option;

    // '+': stop at the first word of the command, whose own options are not ours.
    while ((option = getopt(argc, argv, "+u:g:G:o:n:f:c:d:t")) != -1) {
        switch (option) {
        case 'u': uid = optarg; break;
        case 'g': gid = optarg; break;
        case 'G': groups = optarg; break;
        case 'o': oom = optarg; break;
        case 'n': nice_value = optarg; break;
        case 'f': files = optarg; break;
        case 'c': cgroup = optarg; break;
        case 'd': directory = optarg; break;
        case 't': terminal = 1; break;
        default: return 125;
        }
    }
    if (optind >= argc) {
        say("exec-shim", "no command given");
        return 125;
    }

    setsid(); // EPERM when the spawner made the session already, which is what was wanted
    if (terminal && ioctl(STDIN_FILENO, TIOCSCTTY, 0))
        fail(125, "controlling terminal");
    reset_signals();
    if (cgroup)
        write_file(cgroup, "0"); // "0" is the writer itself (cgroups(7))
    if (oom)
        write_file("/proc/self/oom_score_adj", oom);
    if (nice_value && setpriority(PRIO_PROCESS, 0, (int)number(nice_value)))
        fail(125, "setpriority");
    if (files)
        limit_files(number(files));
    // All but 0, 1 and 2. By number, since Debian 11's libc has no wrapper; kernels before 5.9 have no such call, and
    // there every descriptor of envd is close-on-exec anyway.
    syscall(SYS_close_range, 3U, ~0U, 0U);
    if (groups)
        set_groups(groups);
    if (gid && setresgid((gid_t)number(gid), (gid_t)number(gid), (gid_t)number(gid)))
        fail(125, "setresgid");
    if (uid && setresuid((uid_t)number(uid), (uid_t)number(uid), (uid_t)number(uid)))
        fail(125, "setresuid");
    if (directory && chdir(directory)) // after the change of user, whose permission counts
        fail(126, directory);
    become(argv + optind);
}
