#include "filler.h"

#include <stdlib.h>
#include <unistd.h>

#define MAX_FILLERS 16u

static void free_filler(struct nf_filler *f)
{
	rafs_decoder_free(f->decoder);
	free(f->stage);
	free(f->unit);
	free(f);
}

static uint32_t processors(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 1 ? 1 : n >= (long)MAX_FILLERS ? MAX_FILLERS - 1 : (uint32_t)n;
}

void nf_fillers_init(struct nf_fillers *f)
{
	f->processors = processors();
	nf_crew_init(&f->crew, f->processors - 1);
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->came_free, NULL);
}

void nf_fillers_destroy(struct nf_fillers *f)
{
	nf_crew_destroy(&f->crew);
	nf_fillers_trim(f);
	pthread_mutex_destroy(&f->lock);
	pthread_cond_destroy(&f->came_free);
}

void nf_filler_give_back(struct nf_fillers *all, struct nf_filler *f)
{
	pthread_mutex_lock(&all->lock);
	f->next = all->free;
	all->free = f;
	all->busy--;
	pthread_cond_signal(&all->came_free);
	pthread_mutex_unlock(&all->lock);
}

/* With the lock: a free one or a new one. */
static struct nf_filler *take_locked(struct nf_fillers *all)
{
	struct nf_filler *f = all->free;

	if (f) {
		all->free = f->next;
	} else {
		f = calloc(1, sizeof(*f));
		all->n += f != NULL;
	}
	all->busy += f != NULL;
	return f;
}

struct nf_filler *nf_filler_take(struct nf_fillers *all)
{
	struct nf_filler *f;

	pthread_mutex_lock(&all->lock);
	while (!all->free && all->n > all->processors)
		pthread_cond_wait(&all->came_free, &all->lock);
	f = take_locked(all);
	pthread_mutex_unlock(&all->lock);
	return f;
}

struct nf_filler *nf_filler_with_decoder(struct nf_fillers *all, struct nf_filler *f)
{
	if (f && !f->decoder)
		f->decoder = rafs_decoder_new();
	if (f && !f->decoder) {
		nf_filler_give_back(all, f);
		f = NULL;
	}
	return f;
}

struct nf_filler *nf_filler_take_idle(struct nf_fillers *all)
{
	struct nf_filler *f = NULL;

	pthread_mutex_lock(&all->lock);
	if (all->busy < all->processors)
		f = take_locked(all);
	pthread_mutex_unlock(&all->lock);
	return nf_filler_with_decoder(all, f);
}

bool nf_fillers_idle(struct nf_fillers *all)
{
	bool idle;

	pthread_mutex_lock(&all->lock);
	idle = all->busy < all->processors;
	pthread_mutex_unlock(&all->lock);
	return idle;
}

void nf_fillers_trim(struct nf_fillers *all)
{
	struct nf_filler *f, *next;

	pthread_mutex_lock(&all->lock);
	f = all->free;
	all->free = NULL;
	for (; f; f = next) {
		next = f->next;
		free_filler(f);
		all->n--;
	}
	pthread_mutex_unlock(&all->lock);
}
