/*
 * What the fuse dialect is made of, for its files:
 *   fuse_connections.c  descriptors, the journal, answers as bytes
 *   fuse_files.c        a connection whose files are objects
 *   fuse_flat.c         a connection whose one file is all of them
 *   fuse_tree.c         a connection that shows the tree of a bootstrap
 *   fuse.c              what is asked, what of it waits, READs
 */
#ifndef NF_FUSE_INTERNAL_H
#define NF_FUSE_INTERNAL_H

#include <linux/fuse.h>

#include "fuse.h"
#include "tree.h"

#define NF_FUSE_READ_BUFFER 8192u	/* FUSE_MIN_READ_BUFFER: with less the kernel says EINVAL */
#define NF_FUSE_BUFFER (1u << 20)	/* the largest answer: max_pages 256 */
#define NF_FUSE_VALID_S 86400u
#define NF_FUSE_ROOT 1u
#define NF_FUSE_GONE UINT32_MAX		/* in a record: its connection has ended */

struct nf_fuse_connection;

/* Bytes of an object, which are those of a file at some place. */
struct nf_fuse_piece {
	uint64_t object;	/* 0: zeros, of nobody */
	uint64_t off;
	uint64_t len;
};

/* What a connection shows.  Each function is called for a connection of its own. */
struct nf_fuse_server {
	uint64_t init_flags;	/* besides those of all */
	/* A message with a whole head that is not a READ: reply.  False: ENOSYS. */
	bool (*handle)(struct nf_transport *t, uint32_t slot, const struct nf_fuse_connection *c,
		       const struct fuse_in_header *in);
	/* What the file has from byte off on, `len` bytes at most; out->len is 0 at its end.  -EIO. */
	int (*piece)(struct nf_transport *t, const struct nf_fuse_connection *c, uint64_t node,
		     uint64_t off, uint64_t len, struct nf_fuse_piece *out);
};

/* server NULL: it comes later, and messages wait for it. */
struct nf_fuse_shown {
	const struct nf_fuse_server *server;
	struct nf_tree tree;	/* of fuse_tree.c */
	const uint32_t *objects;	/* by device; the caller's */
	const uint64_t *starts;	/* of each, of fuse_flat.c; the caller's */
	uint32_t nobjects;
};

struct nf_fuse_connection {
	uint32_t id;		/* 0: free */
	int fd;
	bool ended;		/* the kernel has closed it: nothing is read any more */
	struct nf_fuse_shown shown;
	uint32_t users;		/* who writes to fd */
	struct nf_watch watch;	/* armed ones stay where they are, so connections are never freed */
	struct nf_fuse_connection *next;
};

struct nf_fuse {
	struct nf_transport t;
	pthread_mutex_t lock;	/* connections, buffers, holding */
	pthread_cond_t idle;
	struct nf_fuse_connection *connections;
	uint8_t *spare[4];
	unsigned int nspare;
	bool holding;		/* a message that cannot be served yet waits */
	atomic_bool *unclaimed;	/* by slot: such messages */
	atomic_uint came;	/* counts what they may wait for */
	uint64_t *done;		/* by slot: up to which byte of its file a READ was admitted */
	/* a message has come into the record, whole or its head; called by the loop */
	void (*on_message)(struct nf_transport *t, uint32_t slot);
	uint32_t cursor;	/* where to look for free records; the loop's own */
	uint8_t rest[NF_FUSE_READ_BUFFER];	/* of a message; the loop's own */
};

extern const struct nf_fuse_server nf_fuse_files, nf_fuse_flat, nf_fuse_tree;

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

/* What follows the header, as far as it is on record. */
static inline const uint8_t *nf_fuse_body(const struct nf_transport *t, uint32_t slot)
{
	return nf_fuse_record(t, slot)->head + sizeof(struct fuse_in_header);
}

/* The connection of the message in a record stays what it is until put.  NULL: it has ended. */
struct nf_fuse_connection *nf_fuse_get(struct nf_transport *t, uint32_t slot);
void nf_fuse_put(struct nf_transport *t, struct nf_fuse_connection *c);
/* A new one; with fd -1, for one that shows nothing yet.  -EINVAL, -EEXIST, -ENOENT, -ENOMEM. */
int nf_fuse_connect(struct nf_transport *t, uint32_t id, int fd, const struct nf_fuse_shown *shown);

/*
 * To the message in the record; err is a positive errno or 0.  What the kernel does not take any
 * more (ENOENT: answered; ENODEV: unmounted) is nothing to us.
 */
void nf_fuse_reply(struct nf_transport *t, uint32_t slot, int err, const void *data, size_t len);
/* NF_FUSE_BUFFER bytes; NULL: there is no memory. */
uint8_t *nf_fuse_take_buffer(struct nf_transport *t);
void nf_fuse_give_buffer(struct nf_transport *t, uint8_t *buffer);

void nf_fuse_arm(struct nf_transport *t, struct nf_waiter *w);
enum nf_more nf_fuse_drain(struct nf_transport *t, unsigned int budget);
void nf_fuse_rest(struct nf_transport *t);
void nf_fuse_free_connections(struct nf_fuse *f);

#endif
