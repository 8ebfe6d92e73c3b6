#include "journal.h"

#include <string.h>

#include "rafs.h"
#include "core.h"

#define EVENTS_OFF 4096

static size_t meta_off(uint32_t slots)
{
	return EVENTS_OFF + (((size_t)slots * NF_EVENT_SIZE + 63) & ~(size_t)63);
}

static size_t messages_off(uint32_t slots)
{
	size_t len = meta_off(slots) + (size_t)slots * sizeof(struct nf_journal_meta);

	return (len + 4095) & ~(size_t)4095;
}

size_t nf_journal_size(uint32_t slots)
{
	return messages_off(slots) + (size_t)slots * 2 * sizeof(struct nf_message);
}

int nf_journal_format(void *mem, size_t len, uint32_t slots)
{
	struct nf_journal_header *h = mem;

	if (!slots || len < nf_journal_size(slots))
		return -EINVAL;
	h->version = NF_JOURNAL_VERSION;
	h->nslots = slots;
	h->events_off = EVENTS_OFF;
	h->meta_off = meta_off(slots);
	h->messages_off = messages_off(slots);
	h->objects_off = h->messages_off + (uint64_t)slots * sizeof(struct nf_message);
	h->magic = NF_JOURNAL_MAGIC;
	return 0;
}

int nf_journal_open(struct nf_journal *j, void *mem, size_t len)
{
	struct nf_journal_header *h = mem;

	if (len < EVENTS_OFF || h->magic != NF_JOURNAL_MAGIC || h->version != NF_JOURNAL_VERSION)
		return -EPROTO;
	if (!h->nslots || len < nf_journal_size(h->nslots) || h->events_off != EVENTS_OFF ||
	    h->meta_off != meta_off(h->nslots) || h->messages_off != messages_off(h->nslots) ||
	    h->objects_off != h->messages_off + (uint64_t)h->nslots * sizeof(struct nf_message) ||
	    h->messages_used > h->nslots || h->objects_used > h->nslots)
		return -EINVAL;
	j->header = h;
	j->nslots = h->nslots;
	j->events = (uint8_t *)mem + h->events_off;
	j->meta = (struct nf_journal_meta *)((uint8_t *)mem + h->meta_off);
	j->messages = (struct nf_message *)((uint8_t *)mem + h->messages_off);
	j->objects = (struct nf_message *)((uint8_t *)mem + h->objects_off);
	return 0;
}
