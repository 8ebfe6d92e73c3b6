#include "object.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TABLE_MIN 64u
#define ALONE_PAUSE_US 50

static unsigned int inode_hash(uint64_t dev, uint64_t ino)
{
	return (unsigned int)((ino * 0x9e3779b97f4a7c15ULL ^ dev) >> 20) % NF_TABLE;
}

/* -- the table ------------------------------------------------------------------------------- */

void nf_table_init(struct nf_table *t)
{
	pthread_rwlock_init(&t->lock, NULL);
}

void nf_table_destroy(struct nf_table *t)
{
	while (t->len)
		nf_object_put(t->by_id[--t->len]);
	free(t->by_id);
	pthread_rwlock_destroy(&t->lock);
}

/* With the lock: the first whose id is not below `id`. */
static uint32_t position(const struct nf_table *t, uint32_t id)
{
	uint32_t low = 0, high = t->len;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (t->by_id[mid]->id < id)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static bool is_at(const struct nf_table *t, uint32_t at, uint32_t id)
{
	return at < t->len && t->by_id[at]->id == id;
}

static struct nf_object *referenced(struct nf_table *t, struct nf_object *o)
{
	if (o)
		atomic_fetch_add(&o->refs, 1);
	pthread_rwlock_unlock(&t->lock);
	return o;
}

struct nf_object *nf_object_by_id(struct nf_table *t, uint32_t id)
{
	uint32_t at;

	pthread_rwlock_rdlock(&t->lock);
	at = position(t, id);
	return referenced(t, is_at(t, at, id) ? t->by_id[at] : NULL);
}

struct nf_object *nf_object_by_inode(struct nf_table *t, uint64_t dev, uint64_t ino)
{
	struct nf_object *o;

	pthread_rwlock_rdlock(&t->lock);
	for (o = t->by_inode[inode_hash(dev, ino)]; o; o = o->next_inode)
		if (!o->has_kernel && o->dev == dev && o->ino == ino)
			break;
	return referenced(t, o);
}

struct nf_object *nf_object_by_kernel(struct nf_table *t, uint32_t kernel_object)
{
	struct nf_object *o;

	/* the kernel's numbers are small and dense: their own chain of the inode table */
	pthread_rwlock_rdlock(&t->lock);
	for (o = t->by_inode[inode_hash(0, kernel_object)]; o; o = o->next_inode)
		if (o->has_kernel && o->kernel_object == kernel_object)
			break;
	return referenced(t, o);
}

struct nf_object *nf_object_after(struct nf_table *t, uint32_t after)
{
	uint32_t at;

	pthread_rwlock_rdlock(&t->lock);
	at = after == UINT32_MAX ? t->len : position(t, after + 1);
	return referenced(t, at < t->len ? t->by_id[at] : NULL);
}

struct nf_object *nf_object_busiest(struct nf_table *t)
{
	struct nf_object *busiest = NULL;
	uint32_t most = 0, i, n;

	pthread_rwlock_rdlock(&t->lock);
	for (i = 0; i < t->len; i++) {
		n = atomic_load_explicit(&t->by_id[i]->npending, memory_order_relaxed);
		if (n > most) {
			most = n;
			busiest = t->by_id[i];
		}
	}
	return referenced(t, busiest);
}

void nf_object_put(struct nf_object *o)
{
	if (atomic_fetch_sub(&o->refs, 1) != 1)
		return;
	if (o->has_kernel)
		close(o->fill_fd);
	pthread_mutex_destroy(&o->lock);
	free(o->marks);
	free(o->told);
	free(o);
}

void nf_object_wait_alone(struct nf_object *o)
{
	while (atomic_load(&o->refs) > 1)
		usleep(ALONE_PAUSE_US);
}

/* With the lock. */
static int insert(struct nf_table *t, struct nf_object *o)
{
	uint32_t at = position(t, o->id);

	if (is_at(t, at, o->id))
		return -EEXIST;
	if (t->len == t->cap) {
		uint32_t cap = t->cap ? t->cap * 2 : TABLE_MIN;
		struct nf_object **more = realloc(t->by_id, cap * sizeof(*more));

		if (!more)
			return -ENOMEM;
		t->by_id = more;
		t->cap = cap;
	}
	memmove(t->by_id + at + 1, t->by_id + at, (t->len - at) * sizeof(*t->by_id));
	t->by_id[at] = o;
	t->len++;
	if (o->ino) {
		struct nf_object **chain = &t->by_inode[inode_hash(o->dev, o->ino)];

		o->next_inode = *chain;
		*chain = o;
	}
	return 0;
}

int nf_table_add(struct nf_table *t, uint32_t id, uint64_t dev, uint64_t ino, int fill_fd,
		 uint64_t size, uint8_t *pages, bool aligned)
{
	struct nf_object *o;
	int rc;

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
	atomic_init(&o->refs, 1);
	pthread_mutex_init(&o->lock, NULL);
	pthread_rwlock_wrlock(&t->lock);
	rc = insert(t, o);
	pthread_rwlock_unlock(&t->lock);
	if (rc)
		nf_object_put(o);
	return rc;
}

int nf_table_bind(struct nf_table *t, uint32_t id, uint32_t kernel_object, int fd)
{
	struct nf_object **chain = &t->by_inode[inode_hash(0, kernel_object)], *o;
	uint32_t at;
	int rc = 0;

	pthread_rwlock_wrlock(&t->lock);
	at = position(t, id);
	o = is_at(t, at, id) ? t->by_id[at] : NULL;
	if (!o) {
		rc = -ENOENT;
	} else if (o->has_kernel || o->ino) {
		rc = -EBUSY;
	} else {
		o->has_kernel = true;
		o->kernel_object = kernel_object;
		o->fill_fd = fd;
		o->next_inode = *chain;
		*chain = o;
	}
	pthread_rwlock_unlock(&t->lock);
	return rc;
}

struct nf_object *nf_table_remove(struct nf_table *t, uint32_t id)
{
	struct nf_object *o = NULL, **p;
	uint32_t at;

	pthread_rwlock_wrlock(&t->lock);
	at = position(t, id);
	if (is_at(t, at, id)) {
		o = t->by_id[at];
		t->len--;
		memmove(t->by_id + at, t->by_id + at + 1, (t->len - at) * sizeof(*t->by_id));
		p = &t->by_inode[o->has_kernel ? inode_hash(0, o->kernel_object)
					       : inode_hash(o->dev, o->ino)];
		for (; *p; p = &(*p)->next_inode) {
			if (*p == o) {
				*p = o->next_inode;
				break;
			}
		}
	}
	pthread_rwlock_unlock(&t->lock);
	if (!o)
		return NULL;
	pthread_mutex_lock(&o->lock);
	o->gone = true;
	pthread_mutex_unlock(&o->lock);
	return o;
}

/* -- pages ----------------------------------------------------------------------------------- */

static uint64_t end_page(uint64_t off, uint64_t len)
{
	return (off + len + NF_PAGE - 1) / NF_PAGE;
}

bool nf_object_present(const struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end;

	if (off + len > o->size || off + len < off)
		len = o->size > off ? o->size - off : 0;
	end = end_page(off, len);
	for (; page < end; page++)
		if (!(__atomic_load_n(&o->pages[page >> 3], __ATOMIC_SEQ_CST) & (1u << (page & 7))))
			return false;
	return true;
}

void nf_object_set_present(struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end = end_page(off, len);

	for (; page < end && (page & 7); page++)
		__atomic_fetch_or(&o->pages[page >> 3], (uint8_t)(1u << (page & 7)), __ATOMIC_SEQ_CST);
	for (; page + 8 <= end; page += 8)
		__atomic_store_n(&o->pages[page >> 3], 0xff, __ATOMIC_SEQ_CST);
	for (; page < end; page++)
		__atomic_fetch_or(&o->pages[page >> 3], (uint8_t)(1u << (page & 7)), __ATOMIC_SEQ_CST);
}

void nf_object_clear_present(struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end = end_page(off, len);

	pthread_mutex_lock(&o->lock);
	for (; page < end; page++)
		__atomic_fetch_and(&o->pages[page >> 3], (uint8_t)~(1u << (page & 7)), __ATOMIC_SEQ_CST);
	nf_object_untell(o, off, len);
	pthread_mutex_unlock(&o->lock);
}

int nf_object_set_mark(struct nf_object *o, uint64_t off)
{
	uint64_t page = off / NF_PAGE;
	int rc = 0;

	if (off >= o->size)
		return -EINVAL;
	pthread_mutex_lock(&o->lock);
	if (!o->marks && !(o->marks = calloc(1, o->size / NF_PAGE / 8 + 1)))
		rc = -ENOMEM;
	else
		o->marks[page >> 3] |= (uint8_t)(1u << (page & 7));
	pthread_mutex_unlock(&o->lock);
	return rc;
}

void nf_object_set_asked(struct nf_object *o, uint8_t *asked)
{
	pthread_mutex_lock(&o->lock);
	o->asked = asked;
	pthread_mutex_unlock(&o->lock);
}

/* Readers of `asked` take no lock: a bit that they see late makes a guess worse, no more. */
bool nf_object_touch(struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end = end_page(off, len);
	bool crossed = false;

	for (; page < end; page++) {
		uint8_t bit = (uint8_t)(1u << (page & 7));

		if (o->asked)
			__atomic_fetch_or(&o->asked[page >> 3], bit, __ATOMIC_RELAXED);
		if (o->marks && o->marks[page >> 3] & bit) {
			o->marks[page >> 3] &= (uint8_t)~bit;
			crossed = true;
		}
	}
	return crossed;
}

bool nf_object_tell(struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end = end_page(off, len);
	bool is_new = false;

	if (!o->told && !(o->told = calloc(1, o->size / NF_PAGE / 8 + 1)))
		return true;	/* once more than needed */
	for (; page < end; page++) {
		uint8_t bit = (uint8_t)(1u << (page & 7));

		if (o->told[page >> 3] & bit || nf_object_present(o, page * NF_PAGE, 1))
			continue;
		o->told[page >> 3] |= bit;
		is_new = true;
	}
	return is_new;
}

void nf_object_untell(struct nf_object *o, uint64_t off, uint64_t len)
{
	uint64_t page = off / NF_PAGE, end;

	if (!o->told || off >= o->size)
		return;
	end = end_page(off, len < o->size - off ? len : o->size - off);
	for (; page < end; page++)
		o->told[page >> 3] &= (uint8_t)~(1u << (page & 7));
}
