/* Filling: decode, verify, write, mark present, answer (core.h says what each does). */
#ifndef NF_FILL_H
#define NF_FILL_H

#include <pthread.h>

#include "request.h"

struct nf_filler;

/* The memory that fills work with: as many as can decode at once, one for each. */
struct nf_fillers {
	struct nf_requests *core;
	pthread_mutex_t lock;	/* nothing is locked under it */
	pthread_cond_t came_free;
	struct nf_filler *free;
	uint32_t n;		/* free or in use */
	uint32_t most;
};

void nf_fillers_init(struct nf_fillers *f, struct nf_requests *core);
/* No fill is under way. */
void nf_fillers_destroy(struct nf_fillers *f);
void nf_fillers_trim(struct nf_fillers *f);

int nf_fill_units(struct nf_fillers *f, uint32_t id, const struct rafs_blob *blob, uint32_t unit,
		  uint32_t n, const uint8_t *stored, uint64_t stored_off, uint64_t stored_len,
		  int *error, uint32_t *bad_chunk);
int nf_fill_bytes(struct nf_fillers *f, uint32_t id, uint64_t off, const uint8_t *data,
		  uint64_t len);

#endif
