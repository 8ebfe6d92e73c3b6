/* Filling: decode, verify, write, mark present, answer (core.h says what each does). */
#ifndef NF_FILL_H
#define NF_FILL_H

#include "filler.h"
#include "request.h"

int nf_fill_units(struct nf_requests *rs, struct nf_fillers *all, uint32_t id,
		  const struct rafs_blob *blob, uint32_t unit, uint32_t n, const uint8_t *stored,
		  uint64_t stored_off, uint64_t stored_len, int *error, uint32_t *bad_chunk);
int nf_fill_bytes(struct nf_requests *rs, struct nf_fillers *all, uint32_t id, uint64_t off,
		  const uint8_t *data, uint64_t len);

#endif
