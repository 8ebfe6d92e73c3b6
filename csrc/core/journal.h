/*
 * The event journal: memory shared between the service and the keeper.
 *
 * It has an area for each kind of record, and nothing else.  The kernel's read(2) writes
 * into a free record of its dialect's area, so what has left the kernel's queue is on record
 * before any code of ours runs.  When a record is taken, and when it is cleared, is the
 * dialect's matter (fanotify.c, cachefiles.c); always after its answer was written, and
 * before anything that the answer names (a descriptor's number) can come into use again.
 *
 *   offset 0        struct nf_journal_header
 *   records_off     of each area, from 4096 on: `slots` records of `record_size` bytes
 *   meta_off        `slots` records of struct nf_journal_meta, 64-aligned
 *   then            the next area, 4096-aligned
 *
 * Read by another process, maybe of another version (nydus_fscache/handover/fail_pending.py):
 * a change of layout or of a record is a new NF_JOURNAL_VERSION; a new kind of area is none.
 * Version 2 had four areas at fixed offsets.
 */
#ifndef NF_JOURNAL_H
#define NF_JOURNAL_H

#include "base.h"

#define NF_JOURNAL_MAGIC 0x4c4e524a5346594eULL	/* "NYFSJRNL" */
#define NF_JOURNAL_VERSION 3
#define NF_JOURNAL_AREAS 8u

/* Kinds of areas, and what a record is. */
#define NF_AREA_FANOTIFY 1u	/* fanotify_event_metadata (24), fanotify_event_info_range (24) */
#define NF_AREA_CACHEFILES 2u	/* what cachefiles has sent: struct nf_message (cachefiles.h) */
#define NF_AREA_CACHEFILES_OBJECTS 3u	/* the OPENs of objects whose descriptors are parked */
#define NF_AREA_FUSE 4u		/* the head of a message: struct nf_fuse_record (fuse.h) */

struct nf_journal_area {
	uint32_t kind;
	uint32_t record_size;
	uint32_t slots;
	uint32_t used;		/* records behind these were never touched, and take no memory */
	uint64_t records_off;
	uint64_t meta_off;
};

struct nf_journal_header {
	uint64_t magic;
	uint32_t version;
	uint32_t nareas;
	struct nf_journal_area areas[NF_JOURNAL_AREAS];
};

struct nf_journal_meta {
	uint64_t t_ns;		/* CLOCK_BOOTTIME when it was read */
	uint32_t object;	/* 0: read but not yet looked up */
	uint32_t reserved;
};

/* An area to be made: its kind, record_size and slots. */
struct nf_area_spec {
	uint32_t kind;
	uint32_t record_size;
	uint32_t slots;
};

/* An area in use. */
struct nf_area {
	uint8_t *records;
	struct nf_journal_meta *meta;
	uint32_t *used;
	uint32_t record_size;
	uint32_t slots;
};

size_t nf_journal_bytes(const struct nf_area_spec *specs, unsigned int n);
/* mem is zeroed memory; -EINVAL: it is too small, or there are too many areas. */
int nf_journal_make(void *mem, size_t len, const struct nf_area_spec *specs, unsigned int n);
/* -EPROTO: not a journal of this version; -EINVAL: it does not fit its memory. */
int nf_journal_check(const void *mem, size_t len);
/* Of a journal that was checked.  -ENOENT: it has no area of this kind with such records. */
int nf_journal_area(void *mem, uint32_t kind, uint32_t record_size, struct nf_area *out);

/* The next `slot` is about to be written: say so before, or a successor does not look there. */
static inline void nf_area_use(struct nf_area *a, uint32_t slot)
{
	if (__atomic_load_n(a->used, __ATOMIC_RELAXED) <= slot)
		__atomic_store_n(a->used, slot + 1, __ATOMIC_RELEASE);
}

#endif
