/*
 * Objects: the table, references, and what each knows of its pages.
 *
 * Locks, in the order in which they may be taken: table, then object.  None is held while an
 * answer is written or anything is decoded.  A returned object has a reference.
 */
#ifndef NF_OBJECT_H
#define NF_OBJECT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base.h"

#define NF_PAGE 4096u
#define NF_TABLE 4096u

struct nf_request;

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
	uint8_t *told;		/* missing ones that Python was told of; NULL until the first */
	pthread_mutex_t lock;	/* marks, asked, told, who waits, gone */
	struct nf_request *_Atomic pending;	/* newest first */
	atomic_uint npending;
	bool gone;
	atomic_uint refs;
	struct nf_object *next_inode;
};

struct nf_table {
	pthread_rwlock_t lock;
	struct nf_object **by_id;	/* ascending */
	uint32_t len, cap;
	struct nf_object *by_inode[NF_TABLE];
};

void nf_table_init(struct nf_table *t);
void nf_table_destroy(struct nf_table *t);

/* -EEXIST, -EINVAL, -ENOMEM.  The other arguments are as those of nf_object_add (core.h). */
int nf_table_add(struct nf_table *t, uint32_t id, uint64_t dev, uint64_t ino, int fill_fd,
		 uint64_t size, uint8_t *pages, bool aligned);
/* The object owns fd from now on.  -ENOENT; -EBUSY: it has one. */
int nf_table_bind(struct nf_table *t, uint32_t id, uint32_t kernel_object, int fd);
/* It is not found any more, and takes no more who wait; its reference goes to the caller. */
struct nf_object *nf_table_remove(struct nf_table *t, uint32_t id);

struct nf_object *nf_object_by_id(struct nf_table *t, uint32_t id);
struct nf_object *nf_object_by_inode(struct nf_table *t, uint64_t dev, uint64_t ino);
struct nf_object *nf_object_by_kernel(struct nf_table *t, uint32_t kernel_object);
/* The object with the lowest id above `after`. */
struct nf_object *nf_object_after(struct nf_table *t, uint32_t after);
/* The one for which most requests wait; NULL when there is none. */
struct nf_object *nf_object_busiest(struct nf_table *t);
void nf_object_put(struct nf_object *o);
/* Until nobody but the caller has it. */
void nf_object_wait_alone(struct nf_object *o);

/* Pages of [off, off + len), clamped to the object. */
bool nf_object_present(const struct nf_object *o, uint64_t off, uint64_t len);
void nf_object_set_present(struct nf_object *o, uint64_t off, uint64_t len);
/* When it returns, nobody who looked before is still to be let on for it. */
void nf_object_clear_present(struct nf_object *o, uint64_t off, uint64_t len);

/* Ask for read-ahead at the page of off.  -EINVAL, -ENOMEM. */
int nf_object_set_mark(struct nf_object *o, uint64_t off);
void nf_object_set_asked(struct nf_object *o, uint8_t *asked);
/* With the lock: note that a request is for these; did it cross a mark?  Marks hit are gone. */
bool nf_object_touch(struct nf_object *o, uint64_t off, uint64_t len);
/* With the lock: is there a page of these that is missing, and that Python was not told of?  It is
 * told of all of them now. */
bool nf_object_tell(struct nf_object *o, uint64_t off, uint64_t len);
/* With the lock: the next request for one of these pages that are missing is told. */
void nf_object_untell(struct nf_object *o, uint64_t off, uint64_t len);

#endif
