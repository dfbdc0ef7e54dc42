/* Keeps the threads that a parallel region wakes off the processor of the thread that wakes them.
   Linux likes to wake a thread where its waker runs. There it waits until the waker sleeps, and the waker waits for it at the
   end of the region: two threads then take longer than one until the load is balanced, milliseconds later. So the affinity of
   the others excludes the processor of the calling thread, whenever that has changed: one system call for each of them.
   Nothing is done if the user has bound OpenMP's threads (OMP_PROC_BIND, GOMP_CPU_AFFINITY), or has more than processors. */
#if defined(_OPENMP) && defined(__linux__)
#include <omp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST_WORKERS = 64 };
static __thread struct {
    pid_t workers[MOST_WORKERS];
    int count, processor; /* the size of the team whose workers are known; what their affinity excludes */
} team_state = {.processor = -1};

static void spread_team(int count) {
    int processor = sched_getcpu(), i;
    pid_t *workers = team_state.workers;
    cpu_set_t allowed;
    if (count == team_state.count && processor == team_state.processor)
        return;
    if (count > MOST_WORKERS || processor < 0 || omp_get_proc_bind() != omp_proc_bind_false)
        return;
    if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) < count)
        return;
    CPU_CLR(processor, &allowed);
    if (count != team_state.count) {
        for (i = 0; i < count; i++)
            workers[i] = 0;
        #pragma omp parallel num_threads(count)
        workers[omp_get_thread_num()] = syscall(SYS_gettid);
        team_state.count = count;
    }
    team_state.processor = processor;
    for (i = 1; i < count; i++)
        if (!workers[i] || sched_setaffinity(workers[i], sizeof allowed, &allowed))
            team_state.count = 0; /* the team is another one by now */
}
#else
static void spread_team(int count) { (void)count; }
#endif
