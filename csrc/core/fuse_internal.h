/* What the fuse dialect is made of, for its files: fuse_connections.c (descriptors, the journal,
 * answers as bytes) and fuse.c (what is asked, and what of it waits). */
#ifndef NF_FUSE_INTERNAL_H
#define NF_FUSE_INTERNAL_H

#include <linux/fuse.h>

#include "fuse.h"

#define NF_FUSE_READ_BUFFER 8192u	/* FUSE_MIN_READ_BUFFER: with less the kernel says EINVAL */
#define NF_FUSE_GONE UINT32_MAX		/* in a record: its connection has ended */

struct nf_fuse_connection;

struct nf_fuse {
	struct nf_transport t;
	pthread_mutex_t lock;	/* connections, buffers, holding */
	pthread_cond_t idle;
	struct nf_fuse_connection *connections;
	uint8_t *spare[4];
	unsigned int nspare;
	bool holding;		/* a READ of an object that is not known waits for it */
	atomic_bool *unclaimed;	/* by slot: such READs */
	/* a message has come into the record, whole or its head; called by the loop */
	void (*on_message)(struct nf_transport *t, uint32_t slot);
	uint32_t cursor;	/* where to look for free records; the loop's own */
	uint8_t rest[NF_FUSE_READ_BUFFER];	/* of a message; the loop's own */
};

static inline struct nf_fuse_record *nf_fuse_record(const struct nf_transport *t, uint32_t slot)
{
	return nf_transport_record(t, slot);
}

/* Of the message in the record; 0: it is free. */
static inline uint32_t *nf_fuse_len(const struct nf_transport *t, uint32_t slot)
{
	return (uint32_t *)(void *)nf_fuse_record(t, slot)->head;
}

static inline void nf_fuse_clear(struct nf_transport *t, uint32_t slot)
{
	t->area.meta[slot].object = 0;
	__atomic_store_n(nf_fuse_len(t, slot), 0, __ATOMIC_RELEASE);
}

/*
 * To the message in the record; err is a positive errno or 0.  What the kernel does not take any
 * more (ENOENT: answered; ENODEV: unmounted) is nothing to us.
 */
void nf_fuse_reply(struct nf_transport *t, uint32_t slot, int err, const void *data, size_t len);

void nf_fuse_arm(struct nf_transport *t, struct nf_waiter *w);
enum nf_more nf_fuse_drain(struct nf_transport *t, unsigned int budget);
void nf_fuse_free_connections(struct nf_fuse *f);

#endif
