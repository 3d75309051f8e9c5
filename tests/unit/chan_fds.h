/*
 * Open descriptors of this process, so that tests see those that are left.
 */

#ifndef CHAN_FDS_H
#define CHAN_FDS_H

#include <dirent.h>


static inline int
count_fds(void)
{
    int             n;
    DIR            *d;
    struct dirent  *e;

    n = 0;
    d = opendir("/proc/self/fd");
    assert_non_null(d);

    while ((e = readdir(d)) != NULL) {
        n += e->d_name[0] != '.';
    }

    closedir(d);

    return n;
}

#endif /* CHAN_FDS_H */
