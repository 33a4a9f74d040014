/* Forgets the field macros of messages.def before the next use of it. No include guard: used many times. */
#undef U8
#undef U32
#undef U64
#undef F32
#undef STR
#undef U32S
#undef U64S
#undef RECORD
#undef RECORDS
#undef RECORD_BEGIN
#undef RECORD_END
#undef MESSAGE_BEGIN
#undef MESSAGE_END
