/*
 * conninfo.c
 *	  Connection strings of members, as far as they may be shown.
 *
 * Runs in any process: client backends that answer the views, and the consensus worker for its messages.  It must never let a byte of a
 * password out, so it builds what it returns from the options that are known to be harmless, never from the original text.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "libpq-fe.h"

#include "shared/conninfo.h"

/* Quotes as libpq reads it: in single quotes if there is anything to protect, with backslashes before quotes and backslashes. */
static void
append_value(StringInfo text, const char *value)
{
	if (value[0] != '\0' && strpbrk(value, " \t\n\r\f\v'\\") == NULL)
	{
		appendStringInfoString(text, value);
		return;
	}
	appendStringInfoChar(text, '\'');
	for (const char *c = value; *c != '\0'; c++)
	{
		if (*c == '\'' || *c == '\\')
			appendStringInfoChar(text, '\\');
		appendStringInfoChar(text, *c);
	}
	appendStringInfoChar(text, '\'');
}

/* libpq marks an option that is to be hidden in a dialog with '*'; asking it covers the secrets of later versions too. */
static bool
is_secret(const PQconninfoOption *option)
{
	return option->dispchar[0] == '*';
}

char *
conninfo_for_display(const char *conninfo)
{
	PQconninfoOption *options = PQconninfoParse(conninfo, NULL);
	StringInfoData text;

	if (options == NULL)
		return pstrdup("(malformed)");

	initStringInfo(&text);
	for (PQconninfoOption *option = options; option->keyword != NULL; option++)
	{
		if (option->val == NULL || is_secret(option))
			continue;
		if (text.len > 0)
			appendStringInfoChar(&text, ' ');
		appendStringInfo(&text, "%s=", option->keyword);
		append_value(&text, option->val);
	}
	PQconninfoFree(options);
	return text.data;
}

bool
conninfo_is_valid(const char *conninfo)
{
	PQconninfoOption *options = PQconninfoParse(conninfo, NULL);
	bool		has_option = false;

	if (options == NULL)
		return false;
	for (PQconninfoOption *option = options; option->keyword != NULL; option++)
		has_option |= option->val != NULL;
	PQconninfoFree(options);
	return has_option;
}
