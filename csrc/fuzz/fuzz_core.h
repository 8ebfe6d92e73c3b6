/* What the fuzz targets of the core share. */
#ifndef NYDUS_FUZZ_CORE_H
#define NYDUS_FUZZ_CORE_H

#include <linux/fuse.h>
#include <sys/socket.h>

#include "core_internal.h"
#include "fuzz.h"

static inline struct nf_transport *transport_of(struct nf_core *c, const struct nf_transport_ops *ops)
{
	for (unsigned int i = 0; i < c->ntransports; i++)
		if (c->transports[i]->ops == ops)
			return c->transports[i];
	MUST(0);
	return NULL;
}

/* Whatever is answered over FUSE is one answer, and says how long it is. */
static inline void take_fuse_answers(int kernel)
{
	static uint8_t answer[sizeof(struct fuse_out_header) + (1u << 20)];
	struct fuse_out_header h;
	ssize_t n;

	while ((n = recv(kernel, answer, sizeof(answer), MSG_DONTWAIT)) > 0) {
		MUST((size_t)n >= sizeof(h));
		memcpy(&h, answer, sizeof(h));
		MUST(h.len == (uint32_t)n && h.error <= 0 && h.error > -1000);
		MUST(!h.error || (size_t)n == sizeof(h));
	}
}

#endif
