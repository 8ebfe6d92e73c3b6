#include "trace.h"

#include <stdlib.h>
#include <string.h>

void nf_trace_init(struct nf_trace *t)
{
	pthread_mutex_init(&t->lock, NULL);
}

void nf_trace_destroy(struct nf_trace *t)
{
	pthread_mutex_destroy(&t->lock);
	free(t->entries);
}

void nf_trace_add(struct nf_trace *t, const struct nf_trace_entry *e)
{
	if (!atomic_load_explicit(&t->cap, memory_order_relaxed))
		return;
	pthread_mutex_lock(&t->lock);
	if (t->len < atomic_load(&t->cap))
		t->entries[t->len++] = *e;
	pthread_mutex_unlock(&t->lock);
}

int nf_trace_room(struct nf_trace *t, uint32_t n)
{
	struct nf_trace_entry *room = n ? calloc(n, sizeof(*room)) : NULL;

	if (n && !room)
		return -ENOMEM;
	pthread_mutex_lock(&t->lock);
	free(t->entries);
	t->entries = room;
	t->len = 0;
	atomic_store(&t->cap, n);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

int nf_trace_take(struct nf_trace *t, struct nf_trace_entry *out, uint32_t max)
{
	uint32_t n;

	pthread_mutex_lock(&t->lock);
	n = t->len < max ? t->len : max;
	if (n) {
		memcpy(out, t->entries, n * sizeof(*out));
		memmove(t->entries, t->entries + n, (t->len - n) * sizeof(*out));
		t->len -= n;
	}
	pthread_mutex_unlock(&t->lock);
	return (int)n;
}
