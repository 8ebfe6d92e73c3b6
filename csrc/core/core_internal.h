/*
 * What the files of the event core share.
 *
 * Locks, in the order in which they may be taken:
 *   core.table (rwlock)  the hash of objects
 *   object.lock          its pending list, read-ahead marks and what was asked for
 *   core.queue_lock      events for Python; slots of cachefiles
 *   core.fill_lock       the free fillers; nothing is locked under it
 * No lock is held while an answer is written or anything is decoded.
 */
#ifndef NF_CORE_INTERNAL_H
#define NF_CORE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base.h"
#include "rafs.h"
#include "core.h"
#include "journal.h"

#define NF_PAGE 4096u
#define NF_TABLE 4096u
#define NF_NO_SLOT UINT32_MAX

/* A request of the kernel that waits.  Slots [0, nslots) are fanotify's and in the journal. */
struct nf_slot {
	uint64_t off;
	uint64_t len;
	uint64_t t_ns;
	uint32_t next;		/* in the object's pending list */
	uint32_t msg_id;	/* cachefiles */
	int32_t fd;		/* fanotify: the number to answer; cachefiles: the object's descriptor */
	bool owns_fd;		/* close it after the answer: an event's, or a guard of a settled number */
	bool everywhere;	/* its object was not on record: it must be present in all of them */
	bool used;		/* cachefiles slots only, as their record in the journal */
};

struct nf_object {
	uint32_t id;
	uint32_t kernel_object;	/* cachefiles; has_kernel tells */
	bool has_kernel;
	bool aligned;
	uint64_t dev;
	uint64_t ino;
	int fill_fd;
	uint64_t size;
	uint8_t *pages;
	uint8_t *marks;		/* read-ahead marks, as pages; NULL until the first */
	uint8_t *asked;		/* what requests were for, as pages; the caller's, or NULL */
	pthread_mutex_t lock;
	uint32_t pending;	/* list of slots, newest first */
	bool gone;
	atomic_uint refs;
	struct nf_object *next_id;
	struct nf_object *next_inode;
};

struct nf_core {
	struct nf_journal journal;
	struct nf_slot *slots;	/* nslots of the journal, then as many for its messages */
	uint32_t *kernel_objects;	/* of the journal's objects; 0: free */
	uint32_t cursor;	/* where to look for free journal slots; the loop's own */

	pthread_rwlock_t table;
	struct nf_object *by_id[NF_TABLE];
	struct nf_object *by_inode[NF_TABLE];

	int fan_fd;
	int cache_fd;
	int wake_fd;
	int keeper_fd;		/* see nf_core_keep_by */
	bool no_uring;
	pthread_t thread;
	bool started;
	atomic_bool stopping;
	atomic_bool attached;	/* a descriptor is new: the loop must watch it */
	atomic_bool starved;	/* the loop waits for a free slot */

	pthread_mutex_t queue_lock;
	pthread_cond_t queue_filled;
	struct nf_event *queue;
	uint32_t queue_head, queue_len, queue_cap;
	bool woken;

	pthread_mutex_t fill_lock;
	pthread_cond_t filler_free;
	struct nf_filler *fillers;	/* free ones */
	uint32_t nfillers;		/* all of them */

	pthread_mutex_t trace_lock;
	struct nf_trace_entry *trace;
	uint32_t trace_cap, trace_len;

	atomic_ullong events, hits, misses, denied, pending, wakeups;
	atomic_bool uses_uring;
};

uint64_t nf_now_ns(void);

/* core.c */
void nf_push(struct nf_core *c, const struct nf_event *ev);
void nf_wake_loop(struct nf_core *c);
void nf_answer(struct nf_core *c, uint32_t slot, int err);

/* object.c: the returned object has a reference */
struct nf_object *nf_get_id(struct nf_core *c, uint32_t id);
struct nf_object *nf_get_inode(struct nf_core *c, uint64_t dev, uint64_t ino);
struct nf_object *nf_get_kernel(struct nf_core *c, uint32_t kernel_object);
/* The object with the lowest id above `after` that is larger than off. */
struct nf_object *nf_get_next(struct nf_core *c, uint32_t after, uint64_t off);
void nf_put(struct nf_object *o);
bool nf_present(const struct nf_object *o, uint64_t off, uint64_t len);
void nf_set_present(struct nf_object *o, uint64_t off, uint64_t len);
/* Answer the slot, or let it wait and tell Python. The slot's off and len are set. */
void nf_admit(struct nf_core *c, struct nf_object *o, uint32_t slot, int pid);
/* After pages came: answer who is satisfied by them. */
void nf_answer_satisfied(struct nf_core *c, struct nf_object *o);

/* ring.c: wait for POLLIN on up to three descriptors (-1: none) */
struct nf_waiter;
struct nf_waiter *nf_waiter_new(bool no_uring, bool *uses_uring);
void nf_waiter_free(struct nf_waiter *w);
int nf_waiter_watch(struct nf_waiter *w, unsigned int index, int fd);
/* Bit mask of the ready ones, by index. */
unsigned int nf_waiter_wait(struct nf_waiter *w);

/* fanotify.c, cachefiles.c: read and handle until nothing is pending; false: no free slot */
bool nf_fanotify_drain(struct nf_core *c);
bool nf_cachefiles_drain(struct nf_core *c);
/* Take up what the journal says is open, so that no new descriptor gets such a number. */
void nf_fanotify_occupy(struct nf_core *c);
/* The same for messages, whose records no new one may take; and what nf_core_settle does of them. */
void nf_cachefiles_occupy(struct nf_core *c);
int nf_cachefiles_settle(struct nf_core *c);
void nf_fanotify_answer(struct nf_core *c, uint32_t slot, int err);
void nf_cachefiles_answer(struct nf_core *c, uint32_t slot);

#endif
