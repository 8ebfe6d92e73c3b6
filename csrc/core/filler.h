/* The memory that fills work with, and who may decode at once. */
#ifndef NF_FILLER_H
#define NF_FILLER_H

#include <pthread.h>
#include <stdbool.h>

#include "base.h"
#include "rafs.h"
#include "crew.h"

/*
 * What one fill works with.  A core has one more than there are processors,
 * whatever number of threads receive, so that memory follows what can be
 * decoded at once and not how many requests are under way.
 */
struct nf_filler {
	struct rafs_decoder *decoder;	/* NULL until a fill has something to decode */
	uint8_t *stage;			/* page-aligned, as unit; both grow on demand */
	size_t stage_cap;
	uint8_t *unit;
	size_t unit_cap;
	struct nf_filler *next;
};

/* The memory that fills work with: as many as can decode at once, one for each. */
struct nf_fillers {
	pthread_mutex_t lock;	/* nothing is locked under it */
	pthread_cond_t came_free;
	struct nf_filler *free;
	uint32_t n;		/* free or in use; one more than there are processors at most */
	uint32_t busy;		/* in use */
	uint32_t processors;
	struct nf_crew crew;	/* who helps with long fills on processors that are idle */
};

void nf_fillers_init(struct nf_fillers *f);
/* No fill is under way. */
void nf_fillers_destroy(struct nf_fillers *f);
void nf_fillers_trim(struct nf_fillers *f);

/* A free one, or a new one, or the next that comes free; NULL when there is no memory. */
struct nf_filler *nf_filler_take(struct nf_fillers *all);
/* For work that somebody else would do too: NULL unless a processor is idle. */
struct nf_filler *nf_filler_take_idle(struct nf_fillers *all);
bool nf_fillers_idle(struct nf_fillers *all);
/* f, or NULL when there is no memory, or f is NULL. */
struct nf_filler *nf_filler_with_decoder(struct nf_fillers *all, struct nf_filler *f);
void nf_filler_give_back(struct nf_fillers *all, struct nf_filler *f);

#endif
