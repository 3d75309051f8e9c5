/*
 * What the tests of CUDA code share: device memory made from host arrays and
 * back, random numbers, and statements that must end the program.
 */

#ifndef TEST_CUDA_UTIL_H
#define TEST_CUDA_UTIL_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

#include <cmocka.h>

#ifdef __cplusplus
}
#endif

#include <cuda_runtime_api.h>


#define CU_OK(call)  assert_int_equal((int) (call), 0)


static uint64_t  cu_seed = 88172645463325252ull;


static inline uint32_t
cu_random(uint32_t n)
{
    cu_seed ^= cu_seed << 13;
    cu_seed ^= cu_seed >> 7;
    cu_seed ^= cu_seed << 17;

    return (uint32_t) ((cu_seed >> 32) * n >> 32);
}


/* Roughly normal, mean zero, deviation one. */

static inline float
cu_normal(void)
{
    int     i;
    double  sum;

    sum = 0;

    for (i = 0; i < 4; i++) {
        sum += (double) cu_random(1 << 24) / (1 << 24) - 0.5;
    }

    return (float) (sum * 1.7320508);
}


static inline void *
cu_put(const void *src, size_t size)
{
    void  *p;

    CU_OK(cudaMalloc(&p, size));

    if (src != NULL) {
        CU_OK(cudaMemcpy(p, src, size, cudaMemcpyHostToDevice));
    }

    return p;
}


static inline void
cu_get(void *dst, const void *src, size_t size)
{
    CU_OK(cudaMemcpy(dst, src, size, cudaMemcpyDeviceToHost));
}


/* f(arg), in a process of its own, must abort and say `text`. */

static inline void
cu_dies(void (*f)(int), int arg, const char *text)
{
    int      fd[2], status;
    char     out[4096];
    pid_t    pid;
    size_t   n;
    ssize_t  got;

    assert_int_equal(pipe(fd), 0);
    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);

    if (pid == 0) {
        dup2(fd[1], 2);
        close(fd[0]);
        close(fd[1]);
        alarm(30);
        f(arg);
        _exit(0);
    }

    close(fd[1]);
    n = 0;

    while ((got = read(fd[0], out + n, sizeof(out) - 1 - n)) > 0) {
        n += (size_t) got;
    }

    out[n] = '\0';
    close(fd[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);

    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        fail_msg("nothing was wrong, expected: %s", text);
    }

    if (strstr(out, text) == NULL) {
        fail_msg("expected: %s, got: %s", text, out);
    }
}

#endif /* TEST_CUDA_UTIL_H */
