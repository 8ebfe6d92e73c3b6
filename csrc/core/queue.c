#include "queue.h"

#include <stdlib.h>
#include <time.h>

#define QUEUE_MIN 256

void nf_queue_init(struct nf_queue *q)
{
	pthread_condattr_t monotonic;

	pthread_mutex_init(&q->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&q->filled, &monotonic);
	pthread_condattr_destroy(&monotonic);
}

void nf_queue_destroy(struct nf_queue *q)
{
	pthread_mutex_destroy(&q->lock);
	pthread_cond_destroy(&q->filled);
	free(q->events);
}

static bool grow(struct nf_queue *q)
{
	uint32_t cap = q->cap ? q->cap * 2 : QUEUE_MIN, i;
	struct nf_event *bigger = malloc((size_t)cap * sizeof(*bigger));

	if (!bigger)
		return false;
	for (i = 0; i < q->len; i++)
		bigger[i] = q->events[(q->head + i) % q->cap];
	free(q->events);
	q->events = bigger;
	q->head = 0;
	q->cap = cap;
	return true;
}

bool nf_queue_push(struct nf_queue *q, const struct nf_event *ev)
{
	bool fits;

	pthread_mutex_lock(&q->lock);
	fits = q->len < q->cap || grow(q);
	if (fits) {
		q->events[(q->head + q->len) % q->cap] = *ev;
		q->len++;
		pthread_cond_signal(&q->filled);
	}
	pthread_mutex_unlock(&q->lock);
	return fits;
}

int nf_queue_next(struct nf_queue *q, struct nf_event *out, uint32_t max, int timeout_ms)
{
	struct timespec until;
	uint32_t n = 0;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	if (timeout_ms > 0) {
		until.tv_sec += timeout_ms / 1000;
		until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
	}
	pthread_mutex_lock(&q->lock);
	while (!q->len && !q->woken && rc == 0)
		rc = timeout_ms < 0 ? pthread_cond_wait(&q->filled, &q->lock)
				    : pthread_cond_timedwait(&q->filled, &q->lock, &until);
	q->woken = false;
	for (; n < max && q->len; n++) {
		out[n] = q->events[q->head];
		q->head = (q->head + 1) % q->cap;
		q->len--;
	}
	pthread_mutex_unlock(&q->lock);
	return (int)n;
}

void nf_queue_wake(struct nf_queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->woken = true;
	pthread_cond_broadcast(&q->filled);
	pthread_mutex_unlock(&q->lock);
}
