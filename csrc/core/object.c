/* Objects: the table, presence, who waits for what. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core_internal.h"

static unsigned int inode_hash(uint64_t dev, uint64_t ino)
{
	return (unsigned int)((ino * 0x9e3779b97f4a7c15ULL ^ dev) >> 20) % NF_TABLE;
}

/* -- the table ------------------------------------------------------------------------------- */

static struct nf_object *referenced(struct nf_core *c, struct nf_object *o)
{
	if (o)
		atomic_fetch_add(&o->refs, 1);
	pthread_rwlock_unlock(&c->table);
	return o;
}

struct nf_object *nf_get_id(struct nf_core *c, uint32_t id)
{
	struct nf_object *o;

	pthread_rwlock_rdlock(&c->table);
	for (o = c->by_id[id % NF_TABLE]; o && o->id != id; o = o->next_id)
		;
	return referenced(c, o);
}

struct nf_object *nf_get_inode(struct nf_core *c, uint64_t dev, uint64_t ino)
{
	struct nf_object *o;

	pthread_rwlock_rdlock(&c->table);
	for (o = c->by_inode[inode_hash(dev, ino)]; o; o = o->next_inode)
		if (o->dev == dev && o->ino == ino)
			break;
	return referenced(c, o);
}

struct nf_object *nf_get_kernel(struct nf_core *c, uint32_t kernel_object)
{
	struct nf_object *o;

	/* the kernel's numbers are small and dense: their own chain of the inode table */
	pthread_rwlock_rdlock(&c->table);
	for (o = c->by_inode[inode_hash(0, kernel_object)]; o; o = o->next_inode)
		if (o->has_kernel && o->kernel_object == kernel_object)
			break;
	return referenced(c, o);
}

struct nf_object *nf_get_next(struct nf_core *c, uint32_t after, uint64_t off)
{
	struct nf_object *best = NULL, *o;
	unsigned int i;

	pthread_rwlock_rdlock(&c->table);
	for (i = 0; i < NF_TABLE; i++)
		for (o = c->by_id[i]; o; o = o->next_id)
			if (o->id > after && o->size > off && !o->has_kernel &&
			    (!best || o->id < best->id))
				best = o;
	return referenced(c, best);
}

void nf_put(struct nf_object *o)
{
	if (atomic_fetch_sub(&o->refs, 1) != 1)
		return;
	if (o->has_kernel)
		close(o->fill_fd);
	pthread_mutex_destroy(&o->lock);
	free(o->marks);
	free(o);
}

int nf_object_add(struct nf_core *c, uint32_t id, uint64_t dev, uint64_t ino, int fill_fd,
		  uint64_t size, uint8_t *pages, uint32_t aligned)
{
	struct nf_object *o = nf_get_id(c, id);

	if (o) {
		nf_put(o);
		return -EEXIST;
	}
	if (!id || !pages)
		return -EINVAL;
	o = calloc(1, sizeof(*o));
	if (!o)
		return -ENOMEM;
	o->id = id;
	o->dev = dev;
	o->ino = ino;
	o->fill_fd = fill_fd;
	o->size = size;
	o->pages = pages;
	o->aligned = aligned;
	o->pending = NF_NO_SLOT;
	atomic_init(&o->refs, 1);
	pthread_mutex_init(&o->lock, NULL);
	pthread_rwlock_wrlock(&c->table);
	o->next_id = c->by_id[id % NF_TABLE];
	c->by_id[id % NF_TABLE] = o;
	if (ino) {
		o->next_inode = c->by_inode[inode_hash(dev, ino)];
		c->by_inode[inode_hash(dev, ino)] = o;
	}
	pthread_rwlock_unlock(&c->table);
	return 0;
}

int nf_object_bind_kernel(struct nf_core *c, uint32_t id, uint32_t kernel_object, int fd)
{
	struct nf_object *o = nf_get_id(c, id);
	unsigned int h = inode_hash(0, kernel_object);

	if (!o)
		return -ENOENT;
	pthread_rwlock_wrlock(&c->table);
	o->has_kernel = true;
	o->kernel_object = kernel_object;
	o->fill_fd = fd;
	o->next_inode = c->by_inode[h];
	c->by_inode[h] = o;
	pthread_rwlock_unlock(&c->table);
	nf_put(o);
	return 0;
}

static void unlink_object(struct nf_core *c, struct nf_object *o)
{
	unsigned int h = o->has_kernel ? inode_hash(0, o->kernel_object)
				       : inode_hash(o->dev, o->ino);
	struct nf_object **p;

	for (p = &c->by_id[o->id % NF_TABLE]; *p; p = &(*p)->next_id) {
		if (*p == o) {
			*p = o->next_id;
			break;
		}
	}
	for (p = &c->by_inode[h]; *p; p = &(*p)->next_inode) {
		if (*p == o) {
			*p = o->next_inode;
			break;
		}
	}
}

/* -- who waits ------------------------------------------------------------------------------- */

/* Take from the pending list what `take` wants; returns the list of these. */
static uint32_t take_pending(struct nf_core *c, struct nf_object *o,
			     bool (*take)(struct nf_core *, struct nf_object *, uint32_t, void *),
			     void *arg)
{
	uint32_t taken = NF_NO_SLOT, *p, slot;

	pthread_mutex_lock(&o->lock);
	for (p = &o->pending; (slot = *p) != NF_NO_SLOT;) {
		if (take(c, o, slot, arg)) {
			*p = c->slots[slot].next;
			c->slots[slot].next = taken;
			taken = slot;
		} else {
			p = &c->slots[slot].next;
		}
	}
	pthread_mutex_unlock(&o->lock);
	return taken;
}

static uint32_t answer_all(struct nf_core *c, uint32_t list, int err)
{
	uint32_t next, n = 0;

	for (; list != NF_NO_SLOT; list = next, n++) {
		next = c->slots[list].next;
		atomic_fetch_sub(&c->pending, 1);
		nf_answer(c, list, err);
	}
	return n;
}

static bool is_satisfied(struct nf_core *c, struct nf_object *o, uint32_t slot, void *arg)
{
	(void)arg;
	return nf_present(o, c->slots[slot].off, c->slots[slot].len);
}

/*
 * A request whose object was not on record when its reader's service died has
 * to be present in every object before it may go on: pass it to the next one.
 */
static void pass_on(struct nf_core *c, uint32_t after, uint32_t slot)
{
	struct nf_object *o = nf_get_next(c, after, c->slots[slot].off);

	if (!o) {
		nf_answer(c, slot, 0);
		return;
	}
	nf_admit(c, o, slot, 0);
	nf_put(o);
}

void nf_answer_satisfied(struct nf_core *c, struct nf_object *o)
{
	uint32_t list, next;

	if (__atomic_load_n(&o->pending, __ATOMIC_SEQ_CST) == NF_NO_SLOT)
		return;
	list = take_pending(c, o, is_satisfied, NULL);
	for (; list != NF_NO_SLOT; list = next) {
		next = c->slots[list].next;
		atomic_fetch_sub(&c->pending, 1);
		if (c->slots[list].everywhere)
			pass_on(c, o->id, list);
		else
			nf_answer(c, list, 0);
	}
}

static bool crosses_mark(struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end = (off + len + NF_PAGE - 1) / NF_PAGE;
	bool crossed = false;

	if (!o->marks)
		return false;
	for (; page < end; page++) {
		uint8_t bit = 1u << (page & 7);

		if (o->marks[page >> 3] & bit) {
			o->marks[page >> 3] &= (uint8_t)~bit;
			crossed = true;
		}
	}
	return crossed;
}

/* Readers of the bitmap take no lock: a bit that they see late makes a guess worse, no more. */
static void note_asked(struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end = (off + len + NF_PAGE - 1) / NF_PAGE;

	if (!o->asked)
		return;
	for (; page < end; page++)
		o->asked[page >> 3] |= (uint8_t)(1u << (page & 7));
}

static void record_trace(struct nf_core *c, const struct nf_object *o, const struct nf_slot *s,
			 int pid, bool hit)
{
	pthread_mutex_lock(&c->trace_lock);
	if (c->trace_len < c->trace_cap)
		c->trace[c->trace_len++] = (struct nf_trace_entry){
			.t_ns = nf_now_ns(), .off = s->off, .len = (uint32_t)s->len,
			.object = o->id, .pid = pid, .hit = hit,
		};
	pthread_mutex_unlock(&c->trace_lock);
}

void nf_admit(struct nf_core *c, struct nf_object *o, uint32_t slot, int pid)
{
	struct nf_slot *s = &c->slots[slot];
	struct nf_event ev = { .object = o->id, .pid = pid, .fd = -1 };
	uint64_t end = s->off + s->len;
	bool crossed, present, gone;

	if (s->off >= o->size || !s->len) {
		if (s->everywhere)
			pass_on(c, o->id, slot);
		else
			nf_answer(c, slot, 0);
		return;
	}
	if (end > o->size || end < s->off)
		end = o->size;
	ev.off = s->off & ~(uint64_t)(NF_PAGE - 1);
	ev.len = end - ev.off;

	pthread_mutex_lock(&o->lock);
	crossed = crosses_mark(o, ev.off, ev.len);
	note_asked(o, ev.off, ev.len);
	gone = o->gone;
	present = !gone && nf_present(o, s->off, s->len);
	if (!present && !gone) {
		s->next = o->pending;
		__atomic_store_n(&o->pending, slot, __ATOMIC_SEQ_CST);
		atomic_fetch_add(&c->pending, 1);
	}
	pthread_mutex_unlock(&o->lock);

	if (c->trace_cap)
		record_trace(c, o, s, pid, present);
	if (crossed) {
		ev.type = NF_EV_AHEAD;
		nf_push(c, &ev);
	}
	if (gone) {
		nf_answer(c, slot, EIO);
		return;
	}
	if (present) {
		atomic_fetch_add(&c->hits, 1);
		if (s->everywhere)
			pass_on(c, o->id, slot);
		else
			nf_answer(c, slot, 0);
		return;
	}
	atomic_fetch_add(&c->misses, 1);
	ev.type = NF_EV_MISS;
	nf_push(c, &ev);
	/*
	 * A fill that set its bits between our look and the store saw an empty
	 * list and answered nobody: look again.
	 */
	nf_answer_satisfied(c, o);
}

/* -- presence -------------------------------------------------------------------------------- */

bool nf_present(const struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end;

	if (off + len > o->size || off + len < off)
		len = o->size > off ? o->size - off : 0;
	end = (off + len + NF_PAGE - 1) / NF_PAGE;
	for (; page < end; page++)
		if (!(__atomic_load_n(&o->pages[page >> 3], __ATOMIC_SEQ_CST) & (1u << (page & 7))))
			return false;
	return true;
}

void nf_set_present(struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end = (off + len + NF_PAGE - 1) / NF_PAGE;

	for (; page < end && (page & 7); page++)
		__atomic_fetch_or(&o->pages[page >> 3], (uint8_t)(1u << (page & 7)), __ATOMIC_SEQ_CST);
	for (; page + 8 <= end; page += 8)
		__atomic_store_n(&o->pages[page >> 3], 0xff, __ATOMIC_SEQ_CST);
	for (; page < end; page++)
		__atomic_fetch_or(&o->pages[page >> 3], (uint8_t)(1u << (page & 7)), __ATOMIC_SEQ_CST);
}

int nf_object_mark(struct nf_core *c, uint32_t id, uint64_t off)
{
	struct nf_object *o = nf_get_id(c, id);
	uint64_t page = off / NF_PAGE;
	int rc = 0;

	if (!o)
		return -ENOENT;
	pthread_mutex_lock(&o->lock);
	if (off >= o->size)
		rc = -EINVAL;
	else if (!o->marks && !(o->marks = calloc(1, o->size / NF_PAGE / 8 + 1)))
		rc = -ENOMEM;
	else
		o->marks[page >> 3] |= (uint8_t)(1u << (page & 7));
	pthread_mutex_unlock(&o->lock);
	nf_put(o);
	return rc;
}

int nf_object_watch(struct nf_core *c, uint32_t id, uint8_t *asked)
{
	struct nf_object *o = nf_get_id(c, id);

	if (!o)
		return -ENOENT;
	pthread_mutex_lock(&o->lock);
	o->asked = asked;
	pthread_mutex_unlock(&o->lock);
	nf_put(o);
	return 0;
}

/* -- errors ---------------------------------------------------------------------------------- */

struct range {
	uint64_t off;
	uint64_t end;
};

static bool in_range(struct nf_core *c, struct nf_object *o, uint32_t slot, void *arg)
{
	const struct nf_slot *s = &c->slots[slot];
	const struct range *r = arg;

	return s->off < r->end && r->off < s->off + s->len && !nf_present(o, s->off, s->len);
}

int nf_fail(struct nf_core *c, uint32_t id, uint64_t off, uint64_t len, int err)
{
	struct nf_object *o = nf_get_id(c, id);
	struct range r = { off, off + len };

	if (!o)
		return -ENOENT;
	answer_all(c, take_pending(c, o, in_range, &r), err);
	nf_answer_satisfied(c, o);
	nf_put(o);
	return 0;
}

static bool is_any(struct nf_core *c, struct nf_object *o, uint32_t slot, void *arg)
{
	(void)c, (void)o, (void)slot, (void)arg;
	return true;
}

int nf_object_remove(struct nf_core *c, uint32_t id)
{
	struct nf_object *o = nf_get_id(c, id);

	if (!o)
		return -ENOENT;
	pthread_rwlock_wrlock(&c->table);
	unlink_object(c, o);
	pthread_rwlock_unlock(&c->table);
	pthread_mutex_lock(&o->lock);
	o->gone = true;
	pthread_mutex_unlock(&o->lock);
	answer_all(c, take_pending(c, o, is_any, NULL), EIO);
	/* the caller frees the page map next: wait for the loop to be done with it */
	while (atomic_load(&o->refs) > 2)
		usleep(50);
	nf_put(o);
	nf_put(o);
	return 0;
}

static bool is_older(struct nf_core *c, struct nf_object *o, uint32_t slot, void *arg)
{
	(void)o;
	return c->slots[slot].t_ns < *(const uint64_t *)arg;
}

int nf_expire(struct nf_core *c, uint64_t age_ns, int err)
{
	uint64_t now = nf_now_ns(), before = now > age_ns ? now - age_ns : 0;
	struct nf_object *o;
	uint32_t id = 0, n = 0;

	for (unsigned int i = 0; i < NF_TABLE; i++) {
		/* one object at a time, and no lock of the table while answers are written */
		for (id = 0;; nf_put(o)) {
			struct nf_object *best = NULL;

			pthread_rwlock_rdlock(&c->table);
			for (o = c->by_id[i]; o; o = o->next_id)
				if (o->id > id && (!best || o->id < best->id))
					best = o;
			o = referenced(c, best);
			if (!o)
				break;
			id = o->id;
			if (__atomic_load_n(&o->pending, __ATOMIC_SEQ_CST) != NF_NO_SLOT)
				n += answer_all(c, take_pending(c, o, is_older, &before), err);
		}
	}
	return (int)n;
}
