/* Work that takes its next item from a shared counter, by several threads: see codec_internal.h. */

#include <pthread.h>

#include "codec_internal.h"

void rafs_in_parallel(void *(*worker)(void *), void *arg, uint32_t threads)
{
	pthread_t ids[RAFS_MAX_THREADS];
	uint32_t started = 0, i;

	if (threads > RAFS_MAX_THREADS)
		threads = RAFS_MAX_THREADS;
	/* The caller's own thread works too; one that cannot be started is no error. */
	while (started + 1 < threads && !pthread_create(&ids[started], NULL, worker, arg))
		started++;
	worker(arg);
	for (i = 0; i < started; i++)
		pthread_join(ids[i], NULL);
}
