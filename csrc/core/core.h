/*
 * The event core: one C thread that waits for kernel events (io_uring, or poll
 * where that is forbidden), answers at once what is present, keeps what is
 * not, and answers it from the fill that makes it present.  Python sees only
 * misses and says what to fill; it never stands between a reader and data that
 * are there.  Also the cffi declaration of nydus_fscache._core.
 *
 * Negative errno everywhere.  Thread-safe unless said otherwise.
 */
#pragma once

struct nf_core;

/* nf_event.type */
#define NF_EV_MISS 1	/* [off, off+len) of object is wanted and not all there; until that is ended by a
			 * fill or nf_fail (or nf_expire), a request within it makes no other event */
#define NF_EV_AHEAD 2	/* a reader crossed a read-ahead mark (nf_object_mark); nobody waits */
#define NF_EV_OPEN 3	/* cachefiles OPEN: answer with nf_cachefiles_copen */
#define NF_EV_CLOSE 4	/* cachefiles CLOSE: remove the object, which closes its descriptor */
#define NF_EV_BROKEN 5	/* the transport's descriptor failed; len is the errno */
#define NF_EV_LOST 6	/* cachefiles READ of an object that is not known, so it has no descriptor
			 * to answer by: `restore` makes the kernel open the object and send again */

#define NF_KEY_MAX 512

struct nf_event {
	uint32_t type;
	uint32_t object;	/* MISS, AHEAD, CLOSE: the id given to nf_object_add */
	uint64_t off;		/* bytes, clamped to the object and to whole pages */
	uint64_t len;
	int32_t pid;		/* the reader, 0 when unknown */
	/* OPEN only */
	uint32_t msg_id;
	uint32_t kernel_object;	/* the kernel's object_id */
	int32_t fd;		/* anonymous descriptor, FD_CLOEXEC set, owned by the receiver */
	uint32_t volume_len;
	uint32_t cookie_len;
	char volume[NF_KEY_MAX];	/* without its NUL */
	char cookie[NF_KEY_MAX];
};

/*
 * How long requests waited that missed, until their answer: class i is below 2^i / 4 ms, and the
 * last class is the rest.
 */
#define NF_WAIT_CLASSES 19

struct nf_stats {
	uint64_t events;	/* read from the kernel */
	uint64_t hits;		/* answered in C, data were present */
	uint64_t misses;
	uint64_t denied;	/* answered with an error */
	uint64_t pending;	/* waiting now */
	uint64_t oldest_ns;	/* age of the oldest waiting request, 0 when none */
	uint64_t wakeups;
	uint32_t uses_uring;
	uint32_t _pad;
	uint64_t waits_ns;	/* of all that waited */
	uint64_t waits[NF_WAIT_CLASSES];
};

struct nf_trace_entry {
	uint64_t t_ns;		/* CLOCK_BOOTTIME */
	uint64_t off;
	uint32_t len;
	uint32_t object;
	int32_t pid;
	uint32_t hit;
};

/*
 * The journal lies in memory shared with the keeper (a memfd).  Its layout is
 * read by another process, maybe of another version: see journal.h.
 * nf_journal_size says how many bytes `slots` need; nf_journal_format makes a
 * fresh one; nf_core_new attaches to a formatted one (-EPROTO when its magic
 * or version differ).
 */
size_t nf_journal_size(uint32_t slots);
int nf_journal_format(void *mem, size_t len, uint32_t slots);

#define NF_NO_URING 0x1		/* flags: poll and read even where io_uring works */

/* NULL: the journal is not of this version, or there is no memory. */
struct nf_core *nf_core_new(void *journal, size_t journal_len, uint32_t flags);
/* Nobody waits, and no other call is under way; what is pending stays in the journal. */
void nf_core_free(struct nf_core *c);

int nf_core_attach_fanotify(struct nf_core *c, int group_fd);
int nf_core_attach_cachefiles(struct nf_core *c, int dev_fd);
/*
 * A connection of FUSE that is mounted: a non-blocking descriptor of /dev/fuse, borrowed until
 * the detach, under a number of the caller's, not 0.  What it still owes is answered by
 * nf_core_settle.  Every object is a file in its root directory, named by its id in decimal.
 */
int nf_core_attach_fuse(struct nf_core *c, uint32_t connection, int fd);
/*
 * The same, with one file: ``flat`` is n objects behind another, each from byte starts[] on
 * (ascending, whole pages).  Both memories stay until the detach.  n 0: they come later, as below.
 */
int nf_core_attach_fuse_flat(struct nf_core *c, uint32_t connection, int fd, const uint32_t *objects,
			     const uint64_t *starts, uint32_t n);
/*
 * The same of one that shows the tree of a bootstrap, which was validated.  objects: the ids of the
 * objects of its devices, in order.  Both memories stay until the detach.  image NULL: it comes
 * later, by another call with fd -1, and what is asked meanwhile waits as nf_core_fuse_hold says.
 * -ENOENT, -EEXIST; -EINVAL: it is not a bootstrap.
 */
int nf_core_attach_fuse_tree(struct nf_core *c, uint32_t connection, int fd, const uint8_t *image,
			     size_t len, const uint32_t *objects, uint32_t nobjects);
/* The descriptor may be closed then; what waits is answered to nobody. */
int nf_core_detach_fuse(struct nf_core *c, uint32_t connection);
/* hold: READs of objects that are not known wait, and all of trees that are not, until
 * nf_core_fuse_look_again finds them or the hold ends; else they get EIO. */
int nf_core_fuse_hold(struct nf_core *c, uint32_t hold);
int nf_core_fuse_look_again(struct nf_core *c);
/*
 * A socket to the keeper (nydus_fscache/handover/link.py), which gets the descriptor of a cachefiles
 * object as ``object.KERNEL_OBJECT`` right after the read(2) that brought it, and before Python
 * does the same for good.  The descriptor must keep its number for ever.
 */
int nf_core_keep_by(struct nf_core *c, int socket_fd);

/*
 * Requests that a predecessor left in the journal become pending again, those
 * of known objects as MISS events of that object; those whose object was not
 * yet on record as one MISS for every object that covers the range (each must
 * be filled before the request is allowed).  Descriptor numbers that are still
 * owed an answer are kept occupied, so that no new event can get the same one.
 * READs of cachefiles objects that are not bound (nf_object_bind_kernel) are dropped.
 * Call after all objects are added and before nf_core_start.  Returns how many.
 */
int nf_core_settle(struct nf_core *c, uint32_t all_served);
/* -EALREADY, -ENOMEM, -EAGAIN. */
int nf_core_start(struct nf_core *c);
/* Stop reading events (what is pending stays in the journal) and join the thread, however busy the
 * readers are: within the time that a few hundred events take. */
int nf_core_stop(struct nf_core *c);

/*
 * An object is a cache file.  id: chosen by the caller, 1..2^31, stable over a
 * take-over.  dev, ino: how fanotify events name it (0, 0 for cachefiles).
 * fill_fd: where fills are written, not closed here.  size: bytes.
 * pages: presence, one bit a 4 KiB page, least significant bit first, shared
 * memory of the caller that outlives the object.  aligned: fills are O_DIRECT:
 * 4 KiB-aligned offset, length and buffer.
 */
int nf_object_add(struct nf_core *c, uint32_t id, uint64_t dev, uint64_t ino, int fill_fd,
		  uint64_t size, uint8_t *pages, uint32_t aligned);
/* cachefiles: READs of kernel_object belong to object id, which owns fd from now on.  -ENOENT,
 * -EBUSY: then fd is the caller's still. */
int nf_object_bind_kernel(struct nf_core *c, uint32_t id, uint32_t kernel_object, int fd);
/* Denies what still waits for it with EIO.  Fills must have returned. */
int nf_object_remove(struct nf_core *c, uint32_t id);
/* Ask for one AHEAD event when a request first touches the page of off. */
int nf_object_mark(struct nf_core *c, uint32_t id, uint64_t off);
/* From now on set in asked, a bitmap as pages, which pages requests are for; it outlives the
 * object. */
int nf_object_watch(struct nf_core *c, uint32_t id, uint8_t *asked);

/* Misses and the rest, oldest first.  Blocks up to timeout_ms (-1: for ever). Returns how many;
 * 0 on time-out or when the core is stopped. */
int nf_core_next(struct nf_core *c, struct nf_event *out, uint32_t max, int timeout_ms);

/*
 * Decode units [unit, unit+n) from stored (which begins at byte stored_off of
 * the stored blob), verify every chunk, write each at its flat offset with its
 * padding of zeros, mark its pages, and answer the requests that are satisfied
 * by it, each as soon as it is.  Returns the number of units done; when fewer
 * than n, *error is the negative errno and *bad_chunk the chunk (or ~0).
 * Chunks before the bad one are done.  At most one more than there are
 * processors run at once; others wait their turn.  What is long is shared with
 * threads of the core, as long as a processor has no other fill.
 */
int nf_fill(struct nf_core *c, uint32_t id, const struct rafs_blob *blob, uint32_t unit, uint32_t n,
	    const uint8_t *stored, uint64_t stored_off, uint64_t stored_len, int *error,
	    uint32_t *bad_chunk);
/* The same with plain flat bytes (bootstrap over cachefiles; copies from other blobs). */
int nf_fill_flat(struct nf_core *c, uint32_t id, uint64_t off, const uint8_t *data, uint64_t len);
/* Pages of [off, off+len) are in the file already, and right: mark them, answer who waits. */
int nf_filled(struct nf_core *c, uint32_t id, uint64_t off, uint64_t len);
/* Pages of [off, off+len) may be lost (a write-back failed): who reads them from now on misses. */
int nf_unfill(struct nf_core *c, uint32_t id, uint64_t off, uint64_t len);

/* The first 8 bytes at each of n offsets of a file, 0 where there are none: many small reads by
 * one call, since each call out of Python may hand the interpreter to another thread. */
void nf_read_heads(int fd, const uint64_t *offs, uint32_t n, uint64_t *heads);

/*
 * Of which file each of the n chunks of a device (from 0) is the first, by the tree of a bootstrap:
 * directories[i] is the nid of a directory that has it, kinds[i] a number that is equal for names
 * with one suffix, "libz.so.1" and "libc.so" too; 0: of none.  Both are zeros before.  One pass, and
 * no memory but a stack of directories.  -EINVAL: it is not a bootstrap.  -ENOMEM.
 */
int nf_files_of(const uint8_t *image, size_t len, uint32_t device, uint32_t n,
		uint32_t *directories, uint16_t *kinds);
/* The number of a name's suffix, as there. */
uint16_t nf_kind_of(const uint8_t *name, uint32_t len);
/*
 * What a file says it imports, if it is a module of compiled Python or text: at most 256 names in
 * `out`, each with a NUL behind it, of parts with "/" between; "./" and "../" begin those that are
 * beside the file or above it.  Returns the bytes used.  Takes a time that goes by len.
 */
size_t nf_imports(const uint8_t *data, size_t len, uint8_t *out, size_t room);

/* Free the memory that fills keep for the next ones. */
void nf_fill_trim(struct nf_core *c);

/* Answer what waits for any of [off, off+len) and is not satisfied: err is a positive errno
 * (what is not counts as EIO). */
int nf_fail(struct nf_core *c, uint32_t id, uint64_t off, uint64_t len, int err);
/* The same for all requests older than age_ns.  Returns how many. */
int nf_expire(struct nf_core *c, uint64_t age_ns, int err);

/* size >= 0, or a negative errno that fails the OPEN. */
int nf_cachefiles_copen(struct nf_core *c, uint32_t msg_id, int64_t size);
/* The object is closed, or never was open: it goes off the record. Drop its descriptor before. */
void nf_cachefiles_forget(struct nf_core *c, uint32_t kernel_object);
/* What a predecessor may have left on record. */
#define NF_INHERITED_OPENS 1	/* OPENs that it may not have answered */
#define NF_INHERITED_CLOSES 2	/* CLOSEs that it had not seen to */
#define NF_INHERITED_OBJECTS 3	/* objects that it had open, as the OPENs that brought them */
/*
 * One of these a call, from *cursor (0 at first) on: an NF_EV_OPEN with its keys, or an
 * NF_EV_CLOSE with no object but kernel_object; fd is -1.  Returns 1, or 0 when there is no more.
 * Before nf_core_start.
 */
int nf_cachefiles_inherited(struct nf_core *c, uint32_t what, uint32_t *cursor,
			    struct nf_event *out);
/* `restore` was written: what is not answered comes again; READs go off the record, and CLOSEs.
 * Before nf_core_settle. */
void nf_cachefiles_resent(struct nf_core *c);

void nf_core_stats(struct nf_core *c, struct nf_stats *out);

/* Record up to n events (0: stop and drop). Read moves out what was recorded. */
int nf_trace_enable(struct nf_core *c, uint32_t n);
int nf_trace_read(struct nf_core *c, struct nf_trace_entry *out, uint32_t max);
