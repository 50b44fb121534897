// The head of every page: where it is, what it is called, what can be done. It names the window and takes the focus when it appears, so
// that who uses a keyboard or a screen reader is where the page begins.

import { Breadcrumb, BreadcrumbItem, Content, Flex, FlexItem, PageSection, Title } from '@patternfly/react-core';
import type { ReactNode } from 'react';
import { useEffect, useRef } from 'react';

import { BASE, follow } from '../router';

interface Head {
  title: string;
  /** Beside the title. */
  mark?: ReactNode;
  /** A sentence below it. */
  about?: ReactNode;
  /** The pages above, from the outermost. */
  above?: [name: string, page: string][];
  actions?: ReactNode;
  children: ReactNode;
}

// The first page of a visit leaves the focus where the browser put it.
let moved = false;

export function PageOf({ title, mark, about, above = [], actions, children }: Head) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${title} – Splice`;
  }, [title]);
  // Once: a title that becomes known later takes the focus from nobody.
  useEffect(() => {
    if (moved) heading.current?.focus();
    moved = true;
  }, []);
  return (
    <>
      <PageSection className="splice-head">
        {above.length > 0 && (
          <Breadcrumb className="splice-crumbs">
            {above.map(([name, page]) => (
              <BreadcrumbItem key={page} to={`${BASE}${page}`} onClick={follow(page)}>
                {name}
              </BreadcrumbItem>
            ))}
            <BreadcrumbItem isActive>{title}</BreadcrumbItem>
          </Breadcrumb>
        )}
        <Flex alignItems={{ default: 'alignItemsCenter' }} rowGap={{ default: 'rowGapSm' }}>
          <FlexItem>
            <Title headingLevel="h1" size="2xl">
              <span ref={heading} tabIndex={-1} className="splice-title">
                {title}
              </span>
            </Title>
          </FlexItem>
          {mark && <FlexItem>{mark}</FlexItem>}
          {actions && (
            <FlexItem align={{ default: 'alignRight' }}>
              <div className="splice-actions">{actions}</div>
            </FlexItem>
          )}
        </Flex>
        {about && (
          <Content component="p" className="splice-about">
            {about}
          </Content>
        )}
      </PageSection>
      <PageSection isFilled className="splice-body">
        {children}
      </PageSection>
    </>
  );
}
