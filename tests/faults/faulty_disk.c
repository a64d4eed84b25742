/* A disk that is slow, or tears a rename, for one process: preloaded before the C library.

   FAULTY_DISK names the directory on it.  Beside it lie the orders, while they are to hold:
     DIRECTORY.slow   every write to a file takes so many milliseconds more, as its text says;
     DIRECTORY.torn   the next rename of a directory to a number moves half of what is in it and
                      then fails with EIO, or, where the file's text is "kill", kills the
                      process.  */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_on_disk(const char *path) {
  const char *disk = getenv("FAULTY_DISK");
  size_t length = disk ? strlen(disk) : 0;
  return length && !strncmp(path, disk, length) && path[length] == '/';
}

/* Whether an order is given; its text. */
static int ordered(const char *order, char *text, size_t size) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s.%s", getenv("FAULTY_DISK"), order);
  FILE *file = fopen(path, "r");
  if (!file) return 0;
  if (!fgets(text, size, file)) *text = 0;
  fclose(file);
  return 1;
}

static void wait_for_disk(int file) {
  char link[64], path[PATH_MAX], text[32];
  int saved = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length > 0) {
    path[length] = 0;
    if (is_on_disk(path) && ordered("slow", text, sizeof text)) usleep(1000 * atoi(text));
  }
  errno = saved;
}

ssize_t write(int file, const void *data, size_t size) {
  wait_for_disk(file);
  return REAL(write)(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
  wait_for_disk(file);
  return REAL(writev)(file, parts, count);
}

int fsync(int file) {
  wait_for_disk(file);
  return REAL(fsync)(file);
}

int rename(const char *from, const char *to) {
  char text[32], path[PATH_MAX], old[PATH_MAX], new[PATH_MAX];
  struct stat found;
  struct dirent *entry;
  const char *name = strrchr(to, '/');
  int is_number = name && name[1] && !name[1 + strspn(name + 1, "0123456789")];
  if (!is_on_disk(from) || !is_number || stat(from, &found) || !S_ISDIR(found.st_mode)
      || !ordered("torn", text, sizeof text))
    return REAL(rename)(from, to);
  snprintf(path, sizeof path, "%s.torn", getenv("FAULTY_DISK"));
  unlink(path);
  mkdir(to, 0777);
  DIR *entries = opendir(from);
  for (int i = 0; (entry = readdir(entries));) {
    if (entry->d_name[0] == '.' || i++ % 2) continue;
    snprintf(old, sizeof old, "%s/%s", from, entry->d_name);
    snprintf(new, sizeof new, "%s/%s", to, entry->d_name);
    REAL(rename)(old, new);
  }
  closedir(entries);
  if (!strcmp(text, "kill")) kill(getpid(), SIGKILL);
  errno = EIO;
  return -1;
}
